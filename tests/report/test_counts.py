"""What is counted over all images: confusions, and the threshold of the best F1."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from knet.classes import Category
from knet.report.counts import Confusion, ScoreCounts
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


def classes(*labels):
    return [Category(label, label, f"class {label}", True) for label in labels]


def test_large_matrices_are_merged():
    confusion = Confusion(classes(*range(10, 17)))
    confusion.counts[:] = np.diag([9, 9, 9, 9, 9, 9, 0, 0])  # the last class does not occur
    confusion.counts[1, 4] = 5
    confusion.counts[2, 7] = 1  # missed
    rows, columns = confusion.table(limit=3)
    assert [label for label, _, _ in rows] == [11, 12, 14, -2]
    assert columns[:2] == [(11, "class 11"), (12, "class 12")]
    assert columns[2:] == [(14, "class 14"), (-2, "other classes"), (-1, "missed")]
    counts = [[count for count, _, _ in cells] for _, _, cells in rows]
    assert counts == [[9, 0, 5, 0, 0], [0, 9, 0, 0, 1], [0, 0, 9, 0, 0], [0, 0, 0, 27, 0]]
    shares = [share for _, share, _ in rows[0][2]]
    assert shares == pytest.approx([9 / 14, 0, 5 / 14, 0, 0])
    right = [[right for _, _, right in cells].index(True) for _, _, cells in rows[:3]]
    assert right == [0, 1, 2] and not any(right for _, _, right in rows[3][2])
    assert confusion.most_frequent() == [
        ("class 11", "class 14", 5, 5 / 14), ("class 12", "missed", 1, 1 / 10)
    ]  # fmt: skip
    assert sum(map(sum, counts)) == confusion.counts.sum()


def test_pixels_of_label_maps():
    confusion = Confusion(classes(4, 2))
    truth = np.array([[4, 4, 2, 255]], np.uint8)
    confusion.add_pixels(truth, np.array([[4, 2, 2, 4]], np.uint8))
    assert confusion.counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert confusion.table()[1] == [(4, "class 4"), (2, "class 2")]
