"""Ids and categories of result files; what they hold is tested with demo/demo.py."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from knet.modeling.classes import ClassIds
from knet.results.categories import Category, categories_of
from knet.results.coco_files import ResultFiles, image_ids


def test_ids_of_images():
    assert image_ids(["x/000000000139.jpg", "y/7.png"]) == [139, 7]
    assert image_ids(["a/7.png", "b/007.png"]) == [7, 8]  # no number twice
    assert image_ids(["cat.png", "12.png", "².png"]) == [13, 12, 14]
    assert image_ids(["cat.png", "dog.png"]) == [1, 2]


def test_categories_are_those_of_the_data_set():
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    found = categories_of(metadata, ClassIds(tuple(range(11, 19)), tuple(range(11))))
    assert found[0] == Category(label=11, id=24, name="person", is_thing=True)
    assert found[8] == Category(label=0, id=7, name="road", is_thing=False)
    semantic = Metadata(name="own", stuff_classes=["background", "leaf"])
    assert categories_of(semantic, ClassIds((), (0, 1)))[1] == Category(1, 1, "leaf", False)
    with pytest.raises(ValueError, match="'own' name fewer classes"):
        categories_of(semantic, ClassIds((), (0, 1, 2)))


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
