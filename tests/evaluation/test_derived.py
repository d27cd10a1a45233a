"""Ground truth that is derived from panoptic annotations, or written from records."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from PIL import Image

from knet.evaluation import build_evaluator, id2rgb, instance_dataset, semantic_dataset

from .drawn import SIZE, config, evaluate, labels_of


def test_complete_data_set_is_taken_as_it_is(make_dataset, tmp_path):
    records = make_dataset("evaluated", json_file=str(tmp_path / "instances.json"))
    (tmp_path / "instances.json").write_text("{}", encoding="utf-8")
    for record in records:
        record["sem_seg_file_name"] = record["pan_seg_file_name"]
    assert instance_dataset("evaluated", None) == "evaluated"
    assert semantic_dataset("evaluated", None) == "evaluated"


def test_newer_annotations_are_derived_again(make_dataset, tmp_path):
    make_dataset("evaluated")
    json_file = Path(MetadataCatalog.get(instance_dataset("evaluated", str(tmp_path))).json_file)
    json_file.write_text("old", encoding="utf-8")
    instance_dataset("evaluated", str(tmp_path))
    assert json_file.read_text(encoding="utf-8") == "old"
    (tmp_path / "panoptic.json").touch()
    newer = Path(MetadataCatalog.get(instance_dataset("evaluated", str(tmp_path))).json_file)
    assert len(json.loads(newer.read_text(encoding="utf-8"))["annotations"]) == 8
    assert not json_file.exists()


def test_other_processes_take_the_path_of_the_one_that_derived(make_dataset, tmp_path, monkeypatch):
    """Their copies of the files may be of another time."""
    make_dataset("evaluated")
    made = Path(MetadataCatalog.get(instance_dataset("evaluated", str(tmp_path))).json_file)
    os.utime(tmp_path / "panoptic" / "0.png", (1, 1))
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "all_gather", lambda own: [made.parent.name, own])
    theirs = Path(MetadataCatalog.get(instance_dataset("evaluated", str(tmp_path))).json_file)
    assert theirs == made and theirs.exists()


def shifted(image_id):
    return np.roll(labels_of(image_id), 5, axis=1)


def test_other_pngs_and_another_folder_are_derived_again(make_dataset, tmp_path):
    records = make_dataset("evaluated")
    out = str(tmp_path / "out")

    def scores():
        found = evaluate(build_evaluator(config(), "evaluated", out), records, shifted)
        return found["segm"]["AP"], found["sem_seg"]["mIoU"]

    assert max(scores()) < 70
    for image_id in range(4):  # the JSON stays
        Image.fromarray(id2rgb(shifted(image_id))).save(tmp_path / f"panoptic/{image_id}.png")
    assert scores() == pytest.approx((100, 100))
    shutil.copytree(tmp_path / "panoptic", tmp_path / "other")
    for image_id in range(4):
        Image.fromarray(id2rgb(labels_of(image_id))).save(tmp_path / f"other/{image_id}.png")
    vars(MetadataCatalog.get("evaluated"))["panoptic_root"] = str(tmp_path / "other")
    for record in records:
        record["pan_seg_file_name"] = record["pan_seg_file_name"].replace("/panoptic/", "/other/")
    assert max(scores()) < 70


def test_other_labels_are_derived_again(make_dataset, tmp_path):
    records = make_dataset("evaluated")

    def values():
        alias = semantic_dataset("evaluated", str(tmp_path / "out"))
        (first, *_) = DatasetCatalog.get(alias)
        return set(np.unique(np.asarray(Image.open(first["sem_seg_file_name"]))).tolist())

    assert values() == {0, 1, 2, 3, 255} and len(records) == 4
    MetadataCatalog.remove("evaluated")
    DatasetCatalog.remove("evaluated")
    make_dataset("evaluated", ignore_label=77)
    assert values() == {0, 1, 2, 3, 77}


@pytest.mark.parametrize("derived", [instance_dataset, semantic_dataset])
def test_a_kill_leaves_what_was_derived_before(make_dataset, tmp_path, monkeypatch, derived):
    make_dataset("evaluated")
    folder = tmp_path / "out" / "derived" / "evaluated"
    derived("evaluated", str(tmp_path / "out"))
    before, written = (tmp_path / "panoptic.json").stat(), sorted(folder.rglob("*"))
    (tmp_path / "panoptic.json").touch()  # other annotations …
    with monkeypatch.context() as patch:
        for name in ("panoptic_to_instances", "panoptic_to_semantic"):
            patch.setattr(f"knet.evaluation.derived.{name}", _killed)
        with pytest.raises(KeyboardInterrupt):
            derived("evaluated", str(tmp_path / "out"))
    os.utime(tmp_path / "panoptic.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    derived("evaluated", str(tmp_path / "out"))  # … and back to the first
    assert sorted(folder.rglob("*")) == written
    (tmp_path / "panoptic.json").touch()
    derived("evaluated", str(tmp_path / "out"))
    assert len(os.listdir(folder)) == 1  # and not those of older annotations


def _killed(*_, **__):
    raise KeyboardInterrupt


def test_instances_without_a_file_are_written_each_time(tmp_path):
    outline = [[10, 10, 20, 10, 20, 20, 10, 20]]
    box = {"bbox": [10, 10, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": "0.jpg", "image_id": 0, "height": SIZE, "width": SIZE}
    record["annotations"] = [{**box, "segmentation": outline}]
    DatasetCatalog.register("listed", lambda: [record])
    MetadataCatalog.get("listed").set(thing_classes=["cat"], evaluator_type="coco")
    found = Instances((SIZE, SIZE))
    found.pred_masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    found.pred_masks[:, 20:30, 20:30] = True
    found.pred_classes, found.scores = torch.zeros(1, dtype=torch.long), torch.ones(1)
    found.pred_boxes = Boxes(torch.tensor([[20.0, 20, 30, 30]]))
    try:
        for expected in (0, 100):
            evaluator = build_evaluator(config(False, True, False), "listed", str(tmp_path))
            evaluator.reset()
            evaluator.process([record], [{"instances": found}])
            assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(expected)
            record["annotations"] = [
                {**box, "bbox": [20, 20, 10, 10], "segmentation": [[v + 10 for v in outline[0]]]}
            ]
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            for name in [n for n in catalog.list() if n.split("/")[0] == "listed"]:
                catalog.remove(name)
