"""COCO's compressed run lengths: of masks, and of runs that are known already."""

from __future__ import annotations

from typing import Any

import numpy as np


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Of a boolean mask (H, W), as pycocotools gives them."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    starts, lengths = changes[::2], changes[1::2] - changes[::2]
    return {"size": list(mask.shape), "counts": compressed_counts(starts, lengths, mask.size)}


def compressed_counts(starts: np.ndarray, lengths: np.ndarray, pixels: int) -> str:
    """COCO's text of the runs of a mask with `pixels` pixels."""
    ends = starts + lengths
    counts = np.empty(2 * len(starts) + 1, np.int64)
    counts[:-1:2] = np.diff(ends, prepend=0) - lengths  # what lies before each run
    counts[1::2] = lengths
    counts[-1] = pixels - (ends[-1] if len(ends) else 0)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    # from the third on, the difference to the count of the same kind before it
    counts[3:] = counts[3:] - counts[1:-2]
    sizes = np.ones(len(counts), np.int64)  # characters, of five bits and one that more follow
    for size in range(1, 13):
        limit = 1 << (5 * size - 1)
        sizes += (counts < -limit) | (counts >= limit)
    places = np.cumsum(sizes) - sizes
    text = np.empty(int(sizes.sum()), np.uint8)
    for k in range(int(sizes.max())):
        there = sizes > k
        more = sizes[there] > k + 1
        text[places[there] + k] = (counts[there] >> (5 * k) & 31) + 32 * more + 48
    return text.tobytes().decode("ascii")
