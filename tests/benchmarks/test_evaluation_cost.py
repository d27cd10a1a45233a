"""Both sides of the evaluation's benchmark judge the same predictions, and get the same numbers."""

from evaluation_cost import measure


def test_both_sides_find_the_same_quality():
    ours, theirs = (
        measure(side, 6, detections=12, size=(48, 64)) for side in ("ours", "detectron2")
    )
    for score in ("AP", "PQ", "mIoU"):
        assert 0 < ours[score] == theirs[score] < 100
    assert ours["ms an image"] > 0 and theirs["images"] == 6
