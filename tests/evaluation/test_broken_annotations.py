"""Broken annotations of a test set: the evaluation stops with the name of file and record."""

from __future__ import annotations

import pytest

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
from detectron2.config import CfgNode

from knet.data import register_coco_instances, register_coco_panoptic
from knet.data.defects import DataError
from knet.evaluation import build_evaluator

from ..data.broken_instances import INSTANCE_CASES
from ..data.broken_sets import make_broken, make_good

# What is wrong with a picture is found when it is read.
BROKEN_JSON = [
    case for case in INSTANCE_CASES if case.severity == "error" and case.file.endswith(".json")
]


def config():
    test = {"PANOPTIC_ON": False, "INSTANCE_ON": True, "SEMANTIC_ON": False}
    return CfgNode(
        {
            "MODEL": {"KNET": {"TEST": test, "NUM_KERNELS": 100}},
            "TEST": {"DETECTIONS_PER_IMAGE": 100},
        }
    )


def test_there_are_cases():
    names = {case.name for case in BROKEN_JSON}
    masks = {"nan", "far-outside", "rle-cut", "rle-text"}
    assert names >= {f"instances-{mask}" for mask in masks} and len(names) >= 40


@pytest.mark.parametrize("case", BROKEN_JSON, ids=lambda case: case.name)
def test_instances(tmp_path, case):
    entry = make_broken(case, tmp_path / "set")
    with pytest.raises(DataError) as caught:
        register_coco_instances(
            entry["NAME"], image_root=entry["IMAGE_ROOT"], json_file=entry["JSON_FILE"]
        )
        build_evaluator(config(), entry["NAME"], str(tmp_path / "out"))
    defect = caught.value.defect
    assert defect is not None
    assert (defect.kind, defect.record) == (case.kind, case.record)
    assert defect.file == entry["JSON_FILE"] and defect.file in str(caught.value)


@pytest.mark.parametrize(
    "name", ["instances-json-invalid", "instances-no-category", "instances-rle-cut"]
)
def test_instances_beside_panoptic_annotations(tmp_path, name):
    (case,) = [case for case in BROKEN_JSON if case.name == name]
    json_file = make_broken(case, tmp_path / "instances")["JSON_FILE"]
    entry = make_good("coco_panoptic", tmp_path / "panoptic")
    paths = {key.lower(): entry[key] for key in ("IMAGE_ROOT", "PANOPTIC_ROOT", "PANOPTIC_JSON")}
    register_coco_panoptic("beside", **paths, instances_json=json_file)
    with pytest.raises(DataError) as caught:
        build_evaluator(config(), "beside", str(tmp_path / "out"))
    assert caught.value.defect is not None and caught.value.defect.file == json_file
    assert caught.value.defect.record == case.record
