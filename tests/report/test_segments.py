"""What becomes of segments, against the panoptic quality's own counts."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from knet.classes import Category
from knet.evaluation.panoptic_quality import image_statistics
from knet.report.counts import Confusion
from knet.report.segments import Segment, Segments, match_regions, match_segments

SIZE = (24, 40)
CLASSES = [Category(k, k, f"class {k}", True) for k in range(3)]


def rle(mask):
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


def segments_of(ids, infos, *, void=False):
    found = [
        Segment(
            info["category_id"],
            rle(ids == info["id"]),
            score=info.get("score"),
            is_crowd=bool(info.get("iscrowd", 0)),
        )
        for info in infos
    ]
    return Segments(SIZE, found, rle(ids == 0) if void else None)


def random_scene(rng, number, *, crowds):
    """Boxes over each other, some void; the first segment may be a crowd."""
    ids = np.zeros(SIZE, np.int64)
    for k in range(1, number + 1):
        y, x = rng.integers(0, 16), rng.integers(0, 30)
        ids[y : y + rng.integers(4, 20), x : x + rng.integers(4, 20)] = k
    infos = [
        {"id": int(k), "category_id": int(rng.integers(0, 3)), "iscrowd": int(crowds and k < 3)}
        for k in np.unique(ids)
        if k
    ]
    return ids, infos


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_the_panoptic_quality(seed):
    rng = np.random.default_rng(seed)
    true_ids, true_infos = random_scene(rng, 7, crowds=seed % 2 == 0)
    ids = np.roll(true_ids, 1, axis=1)
    ids[true_ids == 3] = 3
    ids[:, :4] = rng.integers(0, 2) * 9
    infos = [
        {"id": int(k), "category_id": int(rng.integers(0, 3)), "score": float(rng.random())}
        for k in np.unique(ids)
        if k
    ]
    for info in infos[::2]:  # some right classes
        info["category_id"] = next(
            (t["category_id"] for t in true_infos if t["id"] == info["id"]), 0
        )
    expected = image_statistics(true_ids, ids, true_infos, infos)
    truth, found = segments_of(true_ids, true_infos, void=True), segments_of(ids, infos)
    statistics = match_segments(truth, found)
    for label in range(3):
        ours, theirs = statistics[label], expected[label]
        assert (ours.tp, ours.fp, ours.fn) == (theirs.tp, theirs.fp, theirs.fn)
        assert ours.iou == pytest.approx(theirs.iou)
    confusion = Confusion(CLASSES)
    confusion.add_segments(truth, found)
    for label in range(3):
        s = expected[label]
        assert confusion.counts[label, label] == s.tp
        assert confusion.counts[label].sum() == s.tp + s.fn
        assert confusion.counts[:, label].sum() == s.tp + s.fp


def box(label, x0, x1, score=None, **values):
    mask = np.zeros(SIZE, bool)
    mask[:, x0:x1] = True
    return Segment(label, rle(mask), score=score, **values)


def test_overlapping_instances_choose_by_score_and_class():
    truth = Segments(SIZE, [box(0, 0, 10), box(1, 20, 30), box(2, 33, 40, is_crowd=True)])
    found = [
        box(0, 0, 8, 0.6),  # second choice: false
        box(0, 0, 9, 0.9),  # found
        box(2, 20, 30, 0.8),  # another class
        box(2, 34, 38, 0.7),  # in the crowd
    ]
    statistics = match_segments(truth, Segments(SIZE, found))
    assert [s.status for s in found] == ["false", "match", "confused", "ignored"]
    assert [s.status for s in truth.segments] == ["match", "confused", "ignored"]
    assert truth.segments[0].iou == pytest.approx(0.9) and truth.segments[0].partner is found[1]
    assert statistics[0].quality()["rq"] == pytest.approx(2 / 3)
    confusion = Confusion(CLASSES)
    confusion.add_segments(truth, Segments(SIZE, found))
    assert confusion.counts.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_nothing_to_find_and_nothing_found():
    for true, found in (([box(0, 0, 9)], []), ([], [box(0, 0, 9, 0.5)]), ([], [])):
        match_segments(Segments(SIZE, true), Segments(SIZE, found))
        assert [s.status for s in true] == ["missed"] * len(true)
        assert [s.status for s in found] == ["false"] * len(found)


def test_regions_leave_void_out():
    void = np.zeros(SIZE, bool)
    void[:, 30:] = True
    truth = Segments(SIZE, [box(0, 0, 20), box(1, 20, 30)], rle(void))
    found = Segments(SIZE, [box(0, 0, 26), box(1, 26, 36), box(2, 36, 40)])
    match_regions(truth, found)
    assert [s.status for s in found.segments] == ["match", "false", "ignored"]
    assert [s.iou for s in truth.segments] == pytest.approx([20 / 26, 4 / 10])
