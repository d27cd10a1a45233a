"""How far the results of an exported graph are from the model's on one picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

# two masks of one class are one object from this overlap on
_SAME = 0.5
# an instance under this score is one of the many that a list ends with, which change places
_COUNTED = 0.05


@dataclass(frozen=True)
class Measure:
    """One line of the table: what is compared, and which side of the tolerance is the good one."""

    name: str
    least: bool
    unit: str = ""


SAME_PIXELS = Measure("panoptic pixels of the same segment", True, "%")
SEGMENT_SCORES = Measure("scores of segments, farthest", False)
SAME_INSTANCES = Measure(f"instances found in both, score {_COUNTED} or more", True, "%")
INSTANCE_SCORES = Measure("scores of instances, farthest", False)
BOXES = Measure("sides of boxes within a pixel", True, "%")
SAME_CLASSES = Measure("semantic pixels of the same class", True, "%")
LOGITS = Measure("logits, farthest", False)


def to_detectron2(results: Mapping[str, np.ndarray], height: int, width: int) -> dict[str, Any]:
    """Outputs of a graph as Detectron2's results, those that evaluators and pictures take.

    Args:
        results: by the names of the outputs, see docs/DEPLOY.md.
        height, width: of the results.
    """
    given = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in results.items()}
    output: dict[str, Any] = {}
    if "panoptic_ids" in given:
        columns = (given[f"segment_{c}"].tolist() for c in ("ids", "classes", "isthing", "scores",
                                                            "areas"))  # fmt: skip
        segments = [
            {"id": i, "category_id": label, "isthing": thing, "score": score, "area": area}
            for i, label, thing, score, area in zip(*columns)
        ]
        output["panoptic_seg"] = given["panoptic_ids"], segments
    if "instance_scores" in given:
        found = Instances((height, width))
        found.scores, found.pred_classes = given["instance_scores"], given["instance_classes"]
        found.pred_masks = given["instance_masks"].bool()
        found.pred_boxes = Boxes(given["instance_boxes"])
        output["instances"] = found
    if "semantic_classes" in given:
        labels = given["semantic_classes"].long()
        # evaluators look for the best class of a pixel
        output["sem_seg"] = torch.nn.functional.one_hot(labels).permute(2, 0, 1).float()
    return output


def differences(
    results: Mapping[str, np.ndarray], expected: Mapping[str, Any]
) -> Iterator[tuple[Measure, float]]:
    """What a graph gives beside what the model gives.

    Args:
        results: by the names of the outputs.
        expected: Detectron2's results of the model at the same size.

    Yields:
        Each measure and its value; percents for those of a share.
    """
    if "panoptic_seg" in expected:
        ids, segments = expected["panoptic_seg"]
        yield from _panoptic(results, ids.cpu().numpy(), segments)
    if "instances" in expected:
        yield from _instances(results, expected["instances"].to("cpu"))
    if "sem_seg" in expected:
        labels = expected["sem_seg"].argmax(dim=0).cpu().numpy()
        yield SAME_CLASSES, 100 * float((results["semantic_classes"] == labels).mean())


def _panoptic(
    results: Mapping[str, np.ndarray], ids: np.ndarray, segments: list[dict[str, Any]]
) -> Iterator[tuple[Measure, float]]:
    found = results["panoptic_ids"]
    classes = dict(zip(results["segment_ids"].tolist(), results["segment_classes"].tolist()))
    scores = dict(zip(results["segment_ids"].tolist(), results["segment_scores"].tolist()))
    pairs, counts = np.unique(np.stack([ids, found]).reshape(2, -1), axis=1, return_counts=True)
    shared = {(int(a), int(b)): int(n) for (a, b), n in zip(pairs.T, counts)}
    same, farthest = shared.get((0, 0), 0), 0.0
    areas = dict(zip(*(x.tolist() for x in np.unique(found, return_counts=True))))
    for segment in segments:
        label, own = segment["category_id"], int((ids == segment["id"]).sum())
        for i in classes:
            both = shared.get((segment["id"], i), 0)
            # at most one of a segment can overlap with it by more than a half
            if classes[i] == label and both > _SAME * (own + areas.get(i, 0) - both):
                same += both
                farthest = max(farthest, abs(scores[i] - segment["score"]))
    yield SAME_PIXELS, 100 * same / ids.size
    yield SEGMENT_SCORES, farthest


def _instances(
    results: Mapping[str, np.ndarray], expected: Instances
) -> Iterator[tuple[Measure, float]]:
    """Each instance of the model with the first of the graph that is of its class and mask."""
    pixels = expected.image_size[0] * expected.image_size[1]
    masks = results["instance_masks"].reshape(-1, pixels)
    theirs = expected.pred_masks.numpy().reshape(-1, pixels)
    areas, own = masks.sum(1), theirs.sum(1)
    shared = theirs.astype(np.float32) @ masks.astype(np.float32).T
    union = own[:, None] + areas - shared
    iou = np.where(union > 0, shared / np.maximum(union, 1), 1.0)  # two empty masks are the same
    iou[expected.pred_classes.numpy()[:, None] != results["instance_classes"]] = 0
    counted = matched = 0
    farthest, near, sides = 0.0, 0, 0
    boxes = expected.pred_boxes.tensor.numpy()
    for i, score in enumerate(expected.scores.tolist()):
        if score < _COUNTED:
            break
        counted += 1
        j = int(iou[i].argmax()) if iou.shape[1] else 0
        if not iou.shape[1] or iou[i, j] <= _SAME:
            continue
        iou[:, j] = 0
        matched += 1
        farthest = max(farthest, abs(float(results["instance_scores"][j]) - score))
        near += int((np.abs(results["instance_boxes"][j] - boxes[i]) <= 1).sum())
        sides += 4
    yield SAME_INSTANCES, 100 * matched / counted if counted else 100.0
    yield INSTANCE_SCORES, farthest
    yield BOXES, 100 * near / sides if sides else 100.0
