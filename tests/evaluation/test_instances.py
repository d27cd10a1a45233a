"""Mask AP: Detectron2's numbers and files, images of many objects, broken annotations."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image

from knet.data import register_coco_instances, register_coco_panoptic
from knet.data.defects import DataError
from knet.evaluation import build_evaluator
from knet.evaluation.instances import InstanceEvaluator

from ..data.broken_instances import INSTANCE_CASES
from ..data.broken_sets import make_broken, make_good
from . import photos
from .drawn import config

COUNT, SIDE, COLUMNS = 150, 4, 15
METRICS = {"AP", "AP50", "AP75", "APs"}  # all objects are small
NAME = "many_objects"

# What is wrong with a picture is found when it is read.
BROKEN_JSON = [
    case for case in INSTANCE_CASES if case.severity == "error" and case.file.endswith(".json")
]


@pytest.mark.parametrize("limit", [100, 150, 7])
def test_mask_ap_is_pycocotools(records, tmp_path, limit, monkeypatch):
    monkeypatch.setattr("knet.evaluation.instances._CHUNK_BYTES", 10 << 20)  # several an image
    file = "coco_instances_results.json"
    ours = InstanceEvaluator(photos.NAME, str(tmp_path / "ours"), max_dets_per_image=limit)
    theirs = COCOEvaluator(photos.NAME, ("segm",), output_dir=str(tmp_path / "theirs"),
                           max_dets_per_image=limit, use_fast_impl=False)  # fmt: skip
    results = photos.compare(
        ours, theirs, records, tmp_path / "ours" / file, tmp_path / "theirs" / file
    )
    assert 5 < results["segm"]["AP"] < 95
    assert not list((tmp_path / "ours").glob("*.pth"))


def test_an_image_that_fills_a_batch_once_more_counts_once(records):
    again = photos.evaluate(InstanceEvaluator(photos.NAME), [*records, records[0]])
    np.testing.assert_equal(again, photos.evaluate(InstanceEvaluator(photos.NAME), records))


def test_images_without_predictions_count_as_missed(records):
    few = photos.evaluate(InstanceEvaluator(photos.NAME), records[:1])
    theirs = photos.evaluate(
        COCOEvaluator(photos.NAME, ("segm",), use_fast_impl=False), records[:1]
    )
    np.testing.assert_equal(few["segm"], dict(theirs["segm"]))
    assert photos.evaluate(InstanceEvaluator(photos.NAME), []) == {}


def test_little_is_kept_of_an_image(records):
    evaluator = InstanceEvaluator(photos.NAME)
    evaluator.reset()
    for record in records:
        evaluator.process([record], [photos.predictions(record, detections=100)])
    assert evaluator._matches._file.tell() < 5000 * len(records)
    kept = (evaluator._coco_api.imgs, evaluator._ids, evaluator._counts, evaluator._objects._places)
    assert len(pickle.dumps(kept)) < 100 * len(records)
    assert not evaluator._coco_api.anns


def test_errors_name_the_image_or_class(records):
    evaluator = InstanceEvaluator(photos.NAME)
    evaluator.reset()
    out = photos.predictions(records[0])
    with pytest.raises(ValueError, match=r"instances_val\.json' has no image with the id 3"):
        evaluator.process([{"image_id": 3}], [out])
    out["instances"].pred_classes[1] = 80
    with pytest.raises(
        ValueError,
        match=r"at least 81 thing .*val\.json' \(data set 'photos'\) .* 80 .*: 1 'person', 2",
    ):
        evaluator.process([records[0]], [out])


@pytest.fixture
def objects(tmp_path):
    """Masks of 150 cells of one class in one image, registered with its JSON."""
    rows = COUNT // COLUMNS
    masks = torch.zeros(COUNT, rows * (SIDE + 1), COLUMNS * (SIDE + 1), dtype=torch.bool)
    annotations = []
    for k, mask in enumerate(masks):
        y, x = (SIDE + 1) * (k // COLUMNS), (SIDE + 1) * (k % COLUMNS)
        mask[y : y + SIDE, x : x + SIDE] = True
        corners = [x, y, x + SIDE, y, x + SIDE, y + SIDE, x, y + SIDE]
        annotations.append(
            {"id": k + 1, "image_id": 1, "category_id": 5, "iscrowd": 0, "area": SIDE**2,
             "bbox": [x, y, SIDE, SIDE], "segmentation": [corners]}
        )  # fmt: skip
    height, width = masks.shape[1:]
    Image.new("RGB", (width, height)).save(tmp_path / "a.png")
    image = {"id": 1, "file_name": "a.png", "height": height, "width": width}
    content = {"images": [image], "annotations": annotations,
               "categories": [{"id": 5, "name": "cell"}, {"id": 2, "name": "rest"}]}  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(content))
    register_coco_instances(NAME, image_root=tmp_path, json_file=tmp_path / "a.json")
    yield masks
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def evaluate(masks, top_k, count=COUNT, folder=None):
    cfg = config(False, True, False, top_k, kernels=120)
    found = Instances(tuple(masks.shape[1:]))
    found.pred_masks = masks[:count]
    found.pred_boxes = Boxes(torch.zeros(count, 4))
    found.scores = torch.linspace(0.9, 0.1, count)
    found.pred_classes = torch.ones(count, dtype=torch.int64)  # ids in their order: 2, 5
    evaluator = build_evaluator(cfg, NAME, folder)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    return evaluator.evaluate().get("segm", {})


@pytest.mark.parametrize("top_k", [150, 375])
def test_all_objects_count(objects, top_k):
    results = evaluate(objects, top_k)
    assert set(results) == {*METRICS, "AP-cell"}  # nothing to say of the class without objects
    assert list(results.values()) == pytest.approx([100] * 5)


def test_cocos_limit_stays_with_100_and_fewer(objects, caplog):
    results = evaluate(objects, 100)
    for key, limit, missed in (
        ("TEST.DETECTIONS_PER_IMAGE", 100, 50),
        ("MODEL.KNET.NUM_KERNELS", 120, 30),
    ):
        assert f"{key} ({limit}) lets the model find: {missed} of 150 objects" in caplog.text
    # 100 of 150 are found: precision 1 at the 67 of 101 recalls up to 2 / 3
    assert results["AP"] == pytest.approx(100 * 67 / 101)
    assert set(results) == {*METRICS, "AP-cell"}
    few = evaluate(objects, 5, count=5)
    assert few == evaluate(objects, 100, count=5)
    assert few["AP"] == pytest.approx(100 * 4 / 101)  # recalls 0, 1, 2 and 3 of 100


@pytest.mark.parametrize("top_k", [100, 150])
def test_nothing_found_is_an_ap_of_0(objects, top_k, caplog):
    with caplog.at_level(logging.INFO, "knet.evaluation"):
        assert evaluate(objects, top_k, count=0) == dict.fromkeys((*METRICS, "AP-cell"), 0.0)
    assert "segm/APl" in caplog.text


def test_annotations_without_area_and_crowd_flag_are_completed(objects):
    whole = evaluate(objects, 150)
    path = MetadataCatalog.get(NAME).json_file
    content = json.loads(Path(path).read_text())
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    Path(path).write_text(json.dumps(content))
    assert evaluate(objects, 150) == whole


def change(objects, edit):
    """The score of perfect results after a change of all annotations."""
    path = Path(MetadataCatalog.get(NAME).json_file)
    content = json.loads(path.read_text())
    edit(content["annotations"])
    path.write_text(json.dumps(content))
    return evaluate(objects, 150)


def test_objects_that_are_there_twice_are_named(objects, caplog):
    def twice(annotations):
        annotations += [{**one, "id": one["id"] + 1000} for one in annotations]

    assert change(objects, twice)["AP"] < 60
    assert "150 of 300 objects" in caplog.text and "are there twice" in caplog.text


def test_crowds_alone_have_no_score(objects, caplog):
    def crowds(annotations):
        for one in annotations:
            one["iscrowd"] = 1

    assert change(objects, crowds) == {}
    assert "has no object that counts" in caplog.text


def test_without_annotations_the_log_says_where_results_are(objects, caplog, tmp_path):
    path = Path(MetadataCatalog.get(NAME).json_file)
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    assert evaluate(objects, 100, folder=str(tmp_path / "out")) == {}
    file = tmp_path / "out" / "coco_instances_results.json"
    assert f"'{path}' has no annotations: nothing is judged; the results are in '{file}'" in (
        caplog.text
    )
    assert len(json.loads(file.read_text())) == COUNT


def test_there_are_broken_annotations():
    names = {case.name for case in BROKEN_JSON}
    masks = {"nan", "far-outside", "rle-cut", "rle-text"}
    assert names >= {f"instances-{mask}" for mask in masks} and len(names) >= 40


@pytest.mark.parametrize("case", BROKEN_JSON, ids=lambda case: case.name)
def test_broken_annotations_are_named(tmp_path, case):
    entry = make_broken(case, tmp_path / "set")
    with pytest.raises(DataError) as caught:
        register_coco_instances(
            entry["NAME"], image_root=entry["IMAGE_ROOT"], json_file=entry["JSON_FILE"]
        )
        build_evaluator(
            config(panoptic=False, semantic=False), entry["NAME"], str(tmp_path / "out")
        )
    defect = caught.value.defect
    assert defect is not None
    assert (defect.kind, defect.record) == (case.kind, case.record)
    assert defect.file == entry["JSON_FILE"] and defect.file in str(caught.value)


@pytest.mark.parametrize(
    "name", ["instances-json-invalid", "instances-no-category", "instances-rle-cut"]
)
def test_broken_instances_beside_panoptic_annotations(tmp_path, name):
    (case,) = [case for case in BROKEN_JSON if case.name == name]
    json_file = make_broken(case, tmp_path / "instances")["JSON_FILE"]
    entry = make_good("coco_panoptic", tmp_path / "panoptic")
    paths = {key.lower(): entry[key] for key in ("IMAGE_ROOT", "PANOPTIC_ROOT", "PANOPTIC_JSON")}
    register_coco_panoptic("beside", **paths, instances_json=json_file)
    with pytest.raises(DataError) as caught:
        build_evaluator(config(panoptic=False, semantic=False), "beside", str(tmp_path / "out"))
    assert caught.value.defect is not None and caught.value.defect.file == json_file
    assert caught.value.defect.record == case.record
