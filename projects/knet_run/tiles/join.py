"""Segments of tiles become segments of the picture.

Neighbouring tiles share a zone that both have seen. Two things are one where their masks cover each
other in it: intersection over union above one half, so that each has one partner at most. Stuff is
one segment a class. Beyond that, each pixel is decided by one tile (see `knet_run.tiles.grid`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from knet_run.tiles.grid import Grid
from knet_run.tiles.segments import SegmentClass, Segmenter, TileSegments

_SAME = 0.5  # intersection over union of two views of one thing


@dataclass(frozen=True)
class Joined:
    """The segments of the picture.

    Attributes:
        ids: (P + 1,) uint32, the segment that each part belongs to; 0 for none.
        classes: (S,) int64, the place of the class of segment s + 1 in the list of classes: that
            with the largest sum of score times area over its parts.
        scores: (S,) float64, the mean of the parts' by area.
        areas: (S,) int64, pixels.
    """

    ids: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    areas: np.ndarray


def join_tiles(
    pixels: np.ndarray, segmenter: Segmenter, *, tile: tuple[int, int], overlap: int
) -> tuple[np.ndarray, Joined]:
    """A picture that is in memory, tile by tile.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        segmenter: the model.
        tile, overlap: see `Grid.of`.

    Returns:
        The segment of each pixel, (H, W) uint32, and the segments.
    """
    grid = Grid.of((pixels.shape[0], pixels.shape[1]), tile, overlap)
    joiner = Joiner(grid, segmenter.classes)
    parts = np.zeros(pixels.shape[:2], np.uint32)
    for r, c in grid:
        y, x = grid.rows.starts[r], grid.columns.starts[c]
        found = segmenter.segment(pixels[y : y + grid.rows.size, x : x + grid.columns.size])
        rows, columns = slice(*grid.rows.cuts[r : r + 2]), slice(*grid.columns.cuts[c : c + 2])
        parts[rows, columns] = joiner.add(r, c, found)
    joined = joiner.finish()
    return joined.ids[parts], joined


class Joiner:
    """Takes the tiles of a picture row by row, and holds what the next row will meet.

    Args:
        grid: of the tiles.
        classes: of the model.
    """

    def __init__(self, grid: Grid, classes: Sequence[SegmentClass]) -> None:
        self._grid = grid
        self._is_thing = np.array([c.is_thing for c in classes], bool)
        # of parts: a thing in a tile, or a class of stuff. Part 0 is void.
        self._parents = [0]
        self._classes = [-1]
        self._weights = [0.0]
        self._areas = [0]
        self._stuff: dict[int, int] = {}
        self._left: np.ndarray | None = None
        self._above: list[np.ndarray] = []
        self._below: list[np.ndarray] = []
        if not self._is_thing.any():  # a map of classes: one number a class, in every picture
            self._number(range(len(classes)))

    def add(self, row: int, column: int, found: TileSegments) -> np.ndarray:
        """Take the next tile.

        Returns:
            (h, w) uint32 parts of the pixels that it decides.
        """
        rows, columns = self._grid.rows, self._grid.columns
        if column == 0:
            self._above, self._below, self._left = self._below, [], None
        numbers = self._number(found.classes.tolist())
        parts = numbers[found.ids]
        if self._left is not None and (shared := columns.shared(column)) > 0:
            self._meet(self._left[:, -shared:], parts[:, :shared])
        if row and (shared := rows.shared(row)) > 0:
            self._meet(self._above[column], parts[:shared])
        self._left = parts
        if row + 1 < len(rows.starts):
            shared = max(rows.shared(row + 1), 0)
            self._below.append(parts[len(parts) - shared :].copy())
        core = rows.core(row), columns.core(column)
        areas = np.bincount(found.ids[core].ravel(), minlength=len(numbers))[1:]
        for part, area, score in zip(numbers[1:].tolist(), areas.tolist(), found.scores.tolist()):
            self._areas[part] += area
            self._weights[part] += score * area
        return parts[core]

    def finish(self) -> Joined:
        """The segments, numbered by the first tile that has seen them and their place there.

        Without things, by class: segment s + 1 is class s, whether it occurs or not.
        """
        parts = range(len(self._parents))
        roots = np.array([self._root(part) for part in parts])
        areas = np.bincount(roots, self._areas).astype(np.int64)
        weights = np.bincount(roots, self._weights)
        kept = np.flatnonzero(areas > 0) if self._is_thing.any() else np.arange(len(roots))
        kept = kept[kept > 0]
        ids = np.zeros(len(roots), np.uint32)
        ids[kept] = np.arange(1, len(kept) + 1)
        votes: dict[tuple[int, int], float] = {}
        for root, label, weight in zip(roots.tolist(), self._classes, self._weights):
            votes[root, label] = votes.get((root, label), 0.0) + weight
        best: dict[int, tuple[float, int]] = {}
        for (root, label), weight in votes.items():
            best[root] = max(best.get(root, (-1.0, 0)), (weight, -label))
        classes = np.array([-best[root][1] for root in kept.tolist()], np.int64)
        return Joined(ids[roots], classes, weights[kept] / areas[kept].clip(1), areas[kept])

    def _number(self, labels: Iterable[int]) -> np.ndarray:
        """(S + 1,) uint32: the part that each segment is, by its class; those of things are new."""
        parts = [0]
        for label in labels:
            part = len(self._parents)
            if not self._is_thing[label]:
                part = self._stuff.setdefault(label, part)
            if part == len(self._parents):
                self._parents.append(part)
                self._classes.append(label)
                self._weights.append(0.0)
                self._areas.append(0)
            parts.append(part)
        return np.array(parts, np.uint32)

    def _meet(self, one: np.ndarray, other: np.ndarray) -> None:
        """Join the things of two views of a zone."""
        pairs, counts = np.unique(
            one.astype(np.uint64) << np.uint64(32) | other, return_counts=True
        )
        first, second = (pairs >> np.uint64(32)).astype(np.int64), (pairs & 0xFFFFFFFF).astype(int)
        seen = [dict.fromkeys(side.tolist(), 0) for side in (first, second)]
        for sums, side in zip(seen, (first, second)):
            for part, count in zip(side.tolist(), counts.tolist()):
                sums[part] += count
        for a, b, both in zip(first.tolist(), second.tolist(), counts.tolist()):
            if a and b and self._are_things(a, b):
                union = seen[0][a] + seen[1][b] - both
                if both > _SAME * union:
                    self._join(a, b)

    def _are_things(self, *parts: int) -> bool:
        return all(self._is_thing[self._classes[part]] for part in parts)

    def _root(self, part: int) -> int:
        parents = self._parents
        while parents[part] != part:
            parents[part] = parents[parents[part]]
            part = parents[part]
        return part

    def _join(self, a: int, b: int) -> None:
        first, second = sorted((self._root(a), self._root(b)))
        self._parents[second] = first  # the older one stays: numbers follow the order of the tiles
