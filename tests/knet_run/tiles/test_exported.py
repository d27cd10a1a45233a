"""Outputs by name become segments; the names are those of `knet.export.graph`."""

import numpy as np
import pytest

from knet_run.tiles.exported import segmenter_of

INFO = {
    "results": ["panoptic", "instance", "semantic"],
    "classes": [
        {"id": 4, "name": "disc", "isthing": True, "color": [1, 2, 3], "dataset_id": 11},
        {"id": 1, "name": "sky", "isthing": False, "color": [4, 5, 6], "dataset_id": 12},
    ],
}
IDS = np.array([[0, 1, 1], [2, 2, 0]], np.int32)
FOUND = {
    "panoptic_ids": IDS,
    "segment_classes": np.array([4, 1]),
    "segment_scores": np.array([0.5, 0.25], np.float32),
    "instance_masks": np.stack([IDS == 1, IDS == 2]),
    "instance_classes": np.array([4, 4]),
    "instance_scores": np.array([0.75, 0.25], np.float32),
    "semantic_classes": np.array([[1, 4, 4], [1, 1, 1]], np.int32),
    "semantic_scores": np.full((2, 3), 0.5, np.float32),
}


@pytest.mark.parametrize(
    ("results", "classes", "ids", "scores"),
    [(["panoptic", "semantic"], [1, 0], IDS, [0.5, 0.25]),
     (["semantic", "instance"], [0], IDS == 1, [0.75]),
     (["semantic"], [0, 1], [[1, 2, 2], [1, 1, 1]], [0.5, 0.5])],
)  # fmt: skip
def test_the_richest_result_is_taken(results, classes, ids, scores):
    seen = []

    def run(image):
        seen.append(np.asarray(image))
        return FOUND

    segmenter = segmenter_of(run, {**INFO, "results": results}, 0.3)
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    found = segmenter.segment(pixels)
    assert np.array_equal(seen[0], pixels)
    assert found.classes.tolist() == classes and found.scores.tolist() == scores
    assert np.array_equal(found.ids, ids)
    names = {"disc": 11, "sky": 12}
    assert all(names[kind.name] == kind.id for kind in segmenter.classes)
    things = [kind.name for kind in segmenter.classes if kind.is_thing]
    assert things == ([] if results == ["semantic"] else ["disc"])
