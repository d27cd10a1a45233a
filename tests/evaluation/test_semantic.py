"""Semantic scores: those of Detectron2, of labels that are checked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from knet.evaluation import build_evaluator, id2rgb
from knet.evaluation.semantic import SemanticEvaluator

from .drawn import SIZE, config, evaluate, labels_of
from .photos import NAME, compare


def test_semantic_results_are_detectron2s(records, tmp_path):
    file = "sem_seg_predictions.json"
    ours = SemanticEvaluator(NAME, output_dir=str(tmp_path / "ours"))
    theirs = SemSegEvaluator(NAME, output_dir=str(tmp_path / "theirs"))
    compare(ours, theirs, records, tmp_path / "ours" / file, tmp_path / "theirs" / file)
    assert ours._predictions == []


def test_classes_without_ground_truth_are_named(make_dataset, tmp_path, caplog):
    def without_dog(image_id):
        ids = labels_of(image_id)
        ids[ids == 2] = 0
        return ids

    records = make_dataset("evaluated")
    content = json.loads((tmp_path / "panoptic.json").read_text())
    for record, annotation in zip(records, content["annotations"]):
        Image.fromarray(id2rgb(without_dog(record["image_id"]))).save(record["pan_seg_file_name"])
        del annotation["segments_info"][1], record["segments_info"][1]
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    cfg = config(panoptic=False, instance=False)
    results = evaluate(build_evaluator(cfg, "evaluated", str(tmp_path)), records, without_dog)
    assert results["sem_seg"]["mIoU"] == 100
    assert "mIoU is that of 3 of 4 classes: no label of 'evaluated/semantic' shows dog; 12." in (
        caplog.text
    )
    evaluate(build_evaluator(cfg, "evaluated", str(tmp_path)), records[1:], lambda _: labels_of(0))
    assert "so with an IoU of 0 in the mean: dog" in caplog.text


@pytest.mark.parametrize(
    "labels, words",
    [
        (np.full((SIZE, SIZE), 4, np.uint8), r"0\.png.*4"),
        (np.zeros((SIZE, SIZE + 1), np.uint8), r"0\.png is 41x40"),
        (np.full((SIZE, SIZE), 700, np.uint16), r"0\.png.*700"),
    ],
)
def test_labels_are_checked_when_scored(tmp_path, labels, words):
    path = tmp_path / "0.png"
    Image.fromarray(labels).save(path)
    name = f"checked_{labels.dtype}_{labels.shape[1]}"
    DatasetCatalog.register(name, lambda: [{"file_name": "0.jpg", "sem_seg_file_name": str(path)}])
    MetadataCatalog.get(name).set(
        stuff_classes=["a", "b"], ignore_label=255, evaluator_type="sem_seg"
    )
    try:
        evaluator = build_evaluator(config(panoptic=False, instance=False), name, None)
        evaluator.reset()
        with pytest.raises(ValueError, match=words):
            evaluator.process([{"file_name": "0.jpg"}], [{"sem_seg": torch.rand(2, SIZE, SIZE)}])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
