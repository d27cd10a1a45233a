"""The threshold of the best F1, against one matching for each threshold."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from knet.report.counts import ScoreCounts
from knet.report.segments import Segment, Segments, match_segments

SIZE = (60, 60)


def segment(label, x, y, side, **values):
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    return Segment(label, mask_util.encode(mask), **values)


def image(rng):
    true = [segment(int(rng.integers(3)), 20 * (k % 3), 20 * (k // 3), 16) for k in range(8)]
    true.append(segment(0, 40, 40, 19, is_crowd=True))
    found = []
    for _ in range(20):
        k = int(rng.integers(9))
        place = [20 * (k % 3) + int(rng.integers(5)), 20 * (k // 3) + int(rng.integers(3))]
        found.append(segment(int(rng.integers(3)), *place, 16, score=float(rng.random())))
    return Segments(SIZE, true), Segments(SIZE, found)


def test_best_f1_is_that_of_all_thresholds():
    rng = np.random.default_rng(1)
    images = [image(rng) for _ in range(12)]
    counts = ScoreCounts({0, 1})  # 2 is stuff
    for truth, found in images:
        match_segments(truth, found)
        counts.add(truth, found)

    def f1(score):
        right = total = 0
        for truth, found in images:
            strong = [s for s in found.segments if s.score >= score]
            of_label = match_segments(truth, Segments(SIZE, strong)).categories
            for label in (0, 1):
                if label in of_label:
                    one = of_label[label]
                    right += 2 * one.tp
                    total += 2 * one.tp + one.fp + one.fn
        return right / total if total else 0.0

    every = [f1(k / 100) for k in range(101)]
    assert [counts.at(k / 100) for k in range(101)] == pytest.approx(every)
    best = counts.best()
    assert best.f1 == pytest.approx(max(every)) == pytest.approx(f1(best.score))
    assert 0 < best.score < 1
    assert ScoreCounts({0}).best() is None
