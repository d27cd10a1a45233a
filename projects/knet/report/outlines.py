"""Masks as SVG paths that follow the borders of pixels."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_cdt

__all__ = ["inner_point", "outline", "shrink_labels"]


def outline(mask: np.ndarray) -> str:
    """The ``d`` of an SVG path around a mask, to be filled by the even-odd rule.

    Args:
        mask: (H, W) bool.

    Returns:
        Exact outlines in units of pixels, holes included; "" for an empty mask.
    """
    padded = np.pad(mask.astype(np.int8), 1)
    above, below = padded[:-1], padded[1:]
    # Where lines of the border meet at a right angle: an odd number of the four pixels around.
    # Where two pixels touch by their corners, two such angles meet.
    corners = (above[:, :-1] + above[:, 1:] + below[:, :-1] + below[:, 1:]) % 2
    touching = (above[:, :-1] == below[:, 1:]) & (above[:, 1:] == below[:, :-1])
    corners += 2 * (touching & (above[:, :-1] != above[:, 1:]))
    ys, xs = np.nonzero(corners)
    counts = corners[ys, xs]
    ys, xs = np.repeat(ys, counts), np.repeat(xs, counts)
    # In each row of corners, a line runs from the first to the second, the third to the fourth, …
    # The same holds in each column.
    by_column = np.lexsort((ys, xs))
    rank = np.empty_like(by_column)
    rank[by_column] = np.arange(len(by_column))
    vertical = by_column[rank ^ 1].tolist()
    x, y = xs.tolist(), ys.tolist()
    done = [False] * len(x)
    parts = []
    for start in range(len(x)):
        if done[start]:
            continue
        parts.append(f"M{x[start]} {y[start]}")
        here = start
        while True:
            across = here ^ 1
            done[here] = done[across] = True
            parts.append(f"h{x[across] - x[here]}")
            here = vertical[across]
            if here == start:
                break
            parts.append(f"v{y[here] - y[across]}")
        parts.append("z")
    return "".join(parts)


def inner_point(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of a pixel deep inside a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    box = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    depth = distance_transform_cdt(box)[1:-1, 1:-1]
    deepest = np.argwhere(depth == depth.max())
    # of a plateau the place in its middle
    y, x = deepest[len(deepest) // 2].tolist()
    return left + x, top + y


def shrink_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a map (H, W) that are nearest to those of a smaller one of ``size``."""
    rows, columns = (
        ((np.arange(small) + 0.5) * large / small).astype(int)
        for small, large in zip(size, labels.shape)
    )
    return labels[rows][:, columns]
