"""The photographs of the fixture, with predictions whose scores are neither 0 nor 100."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from knet.data import register_coco_panoptic
from knet.data.panoptic_png import read_panoptic_png

PHOTOS = Path(__file__).parents[2] / "datasets" / "coco_photos"
NAME = "photos"


def register() -> list[dict]:
    annotations = PHOTOS / "annotations"
    register_coco_panoptic(
        NAME,
        image_root=PHOTOS / "images" / "val",
        panoptic_root=annotations / "panoptic_val",
        panoptic_json=annotations / "panoptic_val.json",
        instances_json=annotations / "instances_val.json",
        sem_seg_root=annotations / "semantic_val",
    )
    return DatasetCatalog.get(NAME)


def predictions(record: dict, detections: int = 40) -> dict:
    """Ground truth that was shifted, with wrong classes, equal scores, and unfounded masks."""
    rng = np.random.RandomState(record["image_id"])
    ids = read_panoptic_png(record["pan_seg_file_name"]).astype(np.int32)
    found = np.roll(ids, rng.randint(-6, 7, 2), (0, 1))
    rows, labels, segments = [], [], []
    for number, segment in enumerate(record["segments_info"], start=1):
        mask = found == segment["id"]
        found[mask] = number
        label = segment["category_id"] if rng.rand() < 0.8 else int(rng.randint(80))
        if mask.any():
            segments.append({"id": number, "category_id": label, "isthing": label < 80})
        if segment["isthing"]:
            rows.append(mask)
            labels.append(label)
    while len(rows) < detections:
        y, x, h, w = rng.randint(1, 200, 4)
        rows.append(np.zeros(ids.shape, bool))
        rows[-1][y : y + h, x : x + w] = True
        labels.append(int(rng.choice(labels)) if labels else 0)
    instances = Instances(ids.shape)
    instances.pred_masks = torch.as_tensor(np.stack(rows))
    instances.pred_boxes = Boxes(torch.as_tensor(rng.rand(len(rows), 4) * 100).float())
    instances.pred_classes = torch.as_tensor(labels)
    instances.scores = torch.as_tensor(rng.rand(len(rows)).round(1)).float()
    scores = torch.as_tensor(rng.rand(133, 8, 8)).float()
    semantic = torch.nn.functional.interpolate(scores[None], size=ids.shape, mode="nearest")[0]
    found[~np.isin(found, [s["id"] for s in segments])] = 0
    return {
        "instances": instances,
        "panoptic_seg": (torch.as_tensor(found), segments),
        "sem_seg": semantic,
    }


def evaluate(evaluator, records):
    evaluator.reset()
    for record in records:
        evaluator.process([record], [predictions(record)])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()


def compare(ours, theirs, records, ours_file, theirs_file):
    results = evaluate(ours, records)
    expected = {task: dict(metrics) for task, metrics in evaluate(theirs, records).items()}
    np.testing.assert_equal(results, expected)  # to the last bit; NaN equals NaN
    assert json.loads(ours_file.read_text()) == json.loads(theirs_file.read_text())
    return results
