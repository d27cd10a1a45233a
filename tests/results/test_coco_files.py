"""Ids and categories of result files; what they hold is tested with demo/demo.py."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from knet.classes import Category, ClassIds, categories_of
from knet.files import write_bytes
from knet.results.coco_files import ResultFiles, image_ids


def test_ids_of_images():
    assert image_ids(["x/000000000139.jpg", "y/7.png"]) == [139, 7]
    assert image_ids(["a/7.png", "b/007.png"]) == [7, 8]  # no number twice
    assert image_ids(["cat.png", "12.png", "².png"]) == [13, 12, 14]
    assert image_ids(["cat.png", "dog.png"]) == [1, 2]
    assert image_ids([]) == [] and image_ids(["9" * 19 + ".png", "0.png"]) == [1, 0]


def test_categories_are_those_of_the_data_set():
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    found = categories_of(metadata, ClassIds(tuple(range(11, 19)), tuple(range(11))))
    assert found[0] == Category(label=11, id=24, name="person", is_thing=True)
    assert found[8] == Category(label=0, id=7, name="road", is_thing=False)
    semantic = Metadata(name="own", stuff_classes=["background", "leaf"])
    assert categories_of(semantic, ClassIds((), (0, 1)))[1] == Category(1, 1, "leaf", False)
    with pytest.raises(ValueError, match="'own' name fewer classes"):
        categories_of(semantic, ClassIds((), (0, 1, 2)))


def test_runs_are_not_mixed_and_records_go_with_pictures(tmp_path, monkeypatch):
    categories = [Category(0, 5, "cat", True)]
    segments = [{"id": 1, "category_id": 0, "isthing": True, "score": 0.5, "area": 24}]
    results = {"panoptic_seg": (torch.ones(4, 6).int(), segments), "sem_seg": torch.ones(1, 4, 6)}

    def full_disk(path, data):
        if path.name == "b.png" and path.parent.name == "semantic":
            raise OSError(28, "No space left on device")
        write_bytes(path, data)

    monkeypatch.setattr("knet.results.coco_files.write_bytes", full_disk)
    with (
        pytest.raises(OSError, match="No space"),
        ResultFiles(tmp_path, categories=categories) as f,
    ):
        f.add(results, image_id=1, file_name="a.png")
        f.add(results, image_id=2, file_name="b.png")
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == [1]
    assert [record["image_id"] for record in content["annotations"]] == [1]
    with pytest.raises(FileExistsError, match=r"earlier run \(images\.json, panoptic\.json"):
        ResultFiles(tmp_path, categories=categories)
    assert (tmp_path / "panoptic" / "a.png").exists()


def test_an_image_without_instances_and_many_classes(tmp_path):
    empty = Instances((4, 6))
    empty.pred_masks, empty.pred_boxes = torch.zeros(0, 4, 6).bool(), Boxes(torch.zeros(0, 4))
    empty.scores, empty.pred_classes = torch.zeros(0), torch.zeros(0).long()
    scores = torch.zeros(300, 4, 6)
    scores[299] = 1
    with ResultFiles(tmp_path / "out", categories=[Category(0, 5, "cat", True)]) as files:
        files.add({"instances": empty, "sem_seg": scores}, image_id=3, file_name="a.b.jpg")
        with pytest.raises(ValueError, match=r"c\.jpg: no result to write among \['depth'\]"):
            files.add({"depth": 0}, image_id=4, file_name="c.jpg")
    assert json.loads((tmp_path / "out" / "instances.json").read_text()) == []
    assert json.loads((tmp_path / "out" / "images.json").read_text()) == {
        "images": [{"id": 3, "file_name": "a.b.jpg", "height": 4, "width": 6}],
        "categories": [{"id": 5, "name": "cat", "isthing": 1, "label": 0}],
    }
    assert not (tmp_path / "out" / "panoptic.json").exists()
    labels = np.array(Image.open(tmp_path / "out" / "semantic" / "a.b.png"))
    assert labels.dtype == np.uint16 and (labels == 299).all()
