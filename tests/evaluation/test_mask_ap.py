"""Matching and its sums, against pycocotools."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from knet.evaluation.mask_ap import accumulate, match_image

SIDE = 60


def rectangles(rng, count, categories, image_id):
    """Overlapping rectangles on a coarse grid: equal IoUs and scores are common."""
    for k in range(count):
        y, x, height, width = 4 * rng.randint(0, 5, 4)
        mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
        mask[y : y + height + 4, x : x + width + 4] = 1
        rle = mask_util.encode(mask)
        yield {"image_id": image_id, "category_id": int(rng.choice(categories)), "id": k,
               "segmentation": rle, "area": int(rng.choice([mask.sum(), 2000])),
               "iscrowd": int(rng.rand() < 0.1), "score": float(rng.randint(9)) / 9}  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_random_masks_as_pycocotools(seed, monkeypatch):
    rng = np.random.RandomState(seed)
    images = list(range(1, 6))
    true, found = (
        [o for i in images for o in rectangles(rng, rng.randint(60), ids, i)]
        for ids in ([2, 5, 9], [5, 9, 11])
    )
    for k, one in enumerate(true):
        one["id"] = k  # the first is 0
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "height": SIDE, "width": SIDE} for i in images],
        "annotations": true,
        "categories": [{"id": k} for k in (2, 5, 9, 11, 12)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        theirs = COCOeval(truth, truth.loadRes([dict(one) for one in found]), "segm")
        theirs.params.maxDets = [1, 5, 12]
        theirs.evaluate()
        theirs.accumulate()
    of_image = [[[one for one in part if one["image_id"] == i] for part in (true, found)]
                for i in images]  # fmt: skip
    for name, value in (("_ROWS", 7), ("_CELLS", 90)):  # some at a time
        monkeypatch.setattr(f"knet.evaluation.mask_ap.{name}", value)
    matched = [(k, match_image(*pair, theirs.params)) for k, pair in enumerate(of_image)]
    ours = accumulate(matched[::-1], theirs.params)
    assert theirs.eval["precision"].max() > 0.1
    for key in ("precision", "recall"):
        np.testing.assert_array_equal(ours.eval[key], theirs.eval[key])  # to the last bit
