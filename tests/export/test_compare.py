"""What is compared of two results, on small ones by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from knet.export import compare
from knet.export.compare import differences, to_detectron2


def panoptic(ids, classes, scores):
    numbers = sorted(set(np.unique(ids)) - {0})
    return {
        "panoptic_ids": np.array(ids, np.int32), "segment_ids": np.array(numbers, np.int32),
        "segment_classes": np.array(classes), "segment_isthing": np.array(classes) > 0,
        "segment_scores": np.array(scores, np.float32),
        "segment_areas": np.array([(np.array(ids) == i).sum() for i in numbers]),
    }  # fmt: skip


def instances(masks, classes, scores):
    masks = np.array(masks, bool)
    boxes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return {
        "instance_masks": masks, "instance_classes": np.array(classes),
        "instance_scores": np.array(scores, np.float32),
        "instance_boxes": np.array(boxes, np.float32),
    }  # fmt: skip


def test_results_become_detectron2s_and_are_equal_to_themselves():
    ids = [[0, 1, 1], [2, 2, 2]]
    masks = [[[0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 1]]]
    results = {**panoptic(ids, [3, 0], [0.9, 0.8]), **instances(masks, [3, 1], [0.9, 0.4]),
               "semantic_classes": np.array([[0, 3, 3], [0, 0, 0]], np.int32)}  # fmt: skip
    output = to_detectron2(results, 2, 3)
    found, segments = output["panoptic_seg"]
    assert found.tolist() == ids
    assert segments[0] == {"id": 1, "category_id": 3, "isthing": True, "area": 2,
                           "score": pytest.approx(0.9)}  # fmt: skip
    assert output["instances"].pred_boxes.tensor.tolist() == [[1, 0, 3, 1], [0, 1, 3, 2]]
    assert output["sem_seg"].argmax(0).tolist() == [[0, 3, 3], [0, 0, 0]]
    values = dict(differences(results, output))
    assert values == {
        compare.SAME_PIXELS: 100, compare.SEGMENT_SCORES: 0, compare.SAME_INSTANCES: 100,
        compare.INSTANCE_SCORES: 0, compare.BOXES: 100, compare.SAME_CLASSES: 100,
    }  # fmt: skip


def test_segments_are_found_by_class_and_overlap():
    expected = to_detectron2(panoptic([[0, 1, 1, 1], [2, 2, 2, 2]], [3, 0], [0.9, 0.8]), 2, 4)
    # in another order, one pixel less, a score off; and then of another class
    other = panoptic([[0, 2, 2, 0], [1, 1, 1, 1]], [0, 3], [0.8, 0.7])
    values = dict(differences(other, expected))
    assert values[compare.SAME_PIXELS] == pytest.approx(100 * 7 / 8)
    assert values[compare.SEGMENT_SCORES] == pytest.approx(0.2)
    other["segment_classes"][1] = 2
    values = dict(differences(other, expected))
    assert values[compare.SAME_PIXELS] == pytest.approx(100 * 5 / 8)


def test_instances_that_are_missing_count_and_those_without_a_score_do_not():
    expected = Instances((1, 4))
    expected.pred_masks = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 1, 1]], [[1, 0, 0, 0]]]).bool()
    expected.scores = torch.tensor([0.9, 0.5, 0.01])
    expected.pred_classes = torch.tensor([0, 1, 0])
    expected.pred_boxes = Boxes(torch.tensor([[0.0, 0, 2, 1], [2, 0, 4, 1], [0, 0, 1, 1]]))
    found = instances([[[1, 1, 1, 0]]], [0], [0.7])
    values = dict(differences(found, {"instances": expected}))
    assert values[compare.SAME_INSTANCES] == 50
    assert values[compare.INSTANCE_SCORES] == pytest.approx(0.2)
    assert values[compare.BOXES] == 100
    nothing = {name: array[:0] for name, array in found.items()}
    assert dict(differences(nothing, {"instances": expected}))[compare.SAME_INSTANCES] == 0
