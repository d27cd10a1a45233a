"""The reader of COCO instance annotations, and the checks of masks behind it."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from knet.data.masks import (
    encode_segmentation,
    repeated_masks,
    rle_counts,
    segmentation_errors,
)

from .good_sets import HEIGHT, WIDTH


def random_masks():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 0.98, 1.0):
        for _ in range(10):
            height, width = rng.integers(1, 90, 2)
            yield (rng.random((height, width)) < share).astype(np.uint8)
    large = np.zeros((700, 900), np.uint8)
    large[600:, 500:] = 1
    yield large


def test_rle_counts_are_those_of_pycocotools():
    for mask in random_masks():
        flat = mask.ravel(order="F")
        ends = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
        runs = [0, *runs] if flat[0] else runs
        rle = mask_util.encode(np.asfortranarray(mask))
        assert rle_counts(rle["counts"]).tolist() == runs
        assert rle_counts(rle["counts"].decode()).tolist() == runs
        assert rle_counts(runs).tolist() == runs
        assert segmentation_errors(rle, mask.shape, "x", "") == []


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("b0\x7f!", "characters that no RLE has"),
        ("ü", "characters that no RLE has"),
        ("1P", "ends in the middle of a number"),
        ("PPPPPPPP0", "a run is longer than any picture"),
        ([2**60, -(2**60)], "a run is longer than any picture"),
        ([1.5], "not all whole numbers"),
        ([], "runs cover 0 pixels, its size 40x60 has 2400"),
        ("", "runs cover 0 pixels, its size 40x60 has 2400"),
        ([2400, 1], "runs cover 2401 pixels"),
        ([2401, -1], "a run of -1 pixels"),
    ],
)
def test_broken_rle(counts, message):
    rle = {"size": [HEIGHT, WIDTH], "counts": counts}
    (defect,) = segmentation_errors(rle, (HEIGHT, WIDTH), "x.json", "image 1")
    assert defect.kind == "rle-invalid" and message in defect.problem


def test_every_damage_to_an_rle_is_found_or_harmless():
    """No text that passes the check makes pycocotools write beyond the picture."""
    rng = np.random.default_rng(1)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:30, 7:44] = rng.random((25, 37)) < 0.5
    whole = mask_util.encode(np.asfortranarray(mask))["counts"]
    passed = 0
    for _ in range(400):
        text = bytearray(whole)
        for position in rng.integers(0, len(text), rng.integers(1, 4)):
            text[position] = rng.integers(40, 120)
        rle = {"size": [HEIGHT, WIDTH], "counts": bytes(text)}
        if not segmentation_errors(rle, (HEIGHT, WIDTH), "x", ""):
            passed += 1
            counts = rle_counts(rle["counts"])
            assert counts.sum() == HEIGHT * WIDTH and (counts >= 0).all()
            assert mask_util.decode(rle).sum() == counts[1::2].sum()
    assert passed < 400


@pytest.mark.parametrize(
    ("polygon", "problem"),
    [
        ([-1, -1, 61, -1, 61, 41], None),
        ([-9, 5, -2, 5, -2, 9], "wholly outside the picture (x -9 to -2 of 60, y 5 to 9 of 40)"),
        ([5, 42, 9, 42, 9, 50], "wholly outside"),
        ([5, 5, 9, 5, 9, 500], "far outside"),
        ([5, 5, 9, float("inf"), 9, 9], "a coordinate is inf"),
        ([5, 5, "9", None, 9, 9], "no numbers"),
        ([[5, 5], [9, 5], [9, 9]] * 2, "no numbers"),
    ],
)
def test_points(polygon, problem):
    defects = segmentation_errors([polygon], (HEIGHT, WIDTH), "x.json", "image 1")
    found = [defect.problem for defect in defects]
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_every_form_of_a_mask_encodes_alike():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:20, 10:20] = True
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    for form in (mask, rle, [[10, 10, 20, 10, 20, 20, 10, 20]]):
        assert mask_util.area(encode_segmentation(form, (HEIGHT, WIDTH))) == 100


def test_repeated_masks_are_those_of_one_class():
    import pycocotools.mask as mask_util

    masks = np.zeros((5, 40, 60), np.uint8)
    masks[0, 2:30, 2:30] = masks[2, 2:30, 2:30] = masks[3, 2:30, 2:30] = 1
    masks[1, 2:30, 3:31] = 1  # as large, elsewhere
    masks[4, 2:30, 2:30] = 1
    masks[4, 2, 2:9] = 0
    rles = mask_util.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
    assert repeated_masks(rles, [1, 1, 1, 2, 1]) == [(2, 0), (4, 0)]
    assert repeated_masks([], []) == []
