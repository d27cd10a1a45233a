"""Segments of tiles become segments of the picture.

Neighbouring tiles share a zone that both have seen. Two things are one where their masks cover each
other in it: intersection over union above one half, so that each has one partner at most. Stuff is
one segment a class.

A pixel of the zone is decided by the tile that sees a whole thing there, where the other one sees
stuff, nothing, or a thing that its border cuts; else by one that sees something, where the other
sees nothing; else by the tile on whose side of the middle it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knet_run.tiles.grid import Grid
from knet_run.tiles.segments import SegmentClass, Segmenter, TileSegments

# where a tile's border can cut a thing
_SIDES: dict[str, Any] = {
    "left": np.s_[:, 0],
    "right": np.s_[:, -1],
    "top": np.s_[0],
    "bottom": np.s_[-1],
}
_COUNTED = 128  # rows at a time, as counting makes a copy
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
    bands = []
    for r, c in grid:
        y, x = grid.rows.starts[r], grid.columns.starts[c]
        found = segmenter.segment(pixels[y : y + grid.rows.size, x : x + grid.columns.size])
        band = joiner.add(r, c, found)
        if band is not None:
            bands.append(band)
    joined = joiner.finish()
    return joined.ids[np.concatenate(bands)], joined


class Joiner:
    """Takes the tiles of a picture row by row, and gives back its rows once they are decided.

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
        self._scores = [0.0]  # times the pixels seen
        self._seen = [0]
        self._areas = np.zeros(1, np.int64)
        # things that the border of their tile does not cut
        self._is_whole: dict[str, list[bool]] = {side: [False] for side in _SIDES}
        self._stuff: dict[int, int] = {}
        if not self._is_thing.any():  # a map of classes: one number a class, in every picture
            for label in range(len(classes)):
                self._part(label)
        self._left = np.zeros((0, 0), np.uint32)  # the tile before
        self._row = np.zeros((0, 0), np.uint32)  # the tiles of this row, joined
        self._open = np.zeros((0, 0), np.uint32)  # what the next row will see, too

    def add(self, row: int, column: int, found: TileSegments) -> np.ndarray | None:
        """Take the next tile.

        Returns:
            After the last tile of a row, (h, W) uint32 parts of the next rows of the picture.
        """
        rows, columns = self._grid.rows, self._grid.columns
        parts = self._number(found)[found.ids]
        if column == 0:
            self._row = np.zeros((rows.size, columns.cuts[-1]), np.uint32)
        shared = columns.shared(column) if column else 0
        start = columns.starts[column]
        self._row[:, start + shared : start + columns.size] = parts[:, shared:]
        if shared > 0:
            one, other = self._left[:, -shared:], parts[:, :shared]
            self._meet(one, other)
            later = np.arange(shared) >= columns.cuts[column] - start
            # of three tiles that see a pixel, the first two have decided
            kept = self._row[:, start : start + shared]
            kept[:] = np.where(self._takes(kept, other, later, "right", "left"), other, kept)
        self._left = parts
        if column + 1 < len(columns.starts):
            return None
        if row:
            shared = len(self._open)
            self._meet(self._open, self._row[:shared])
            later = np.arange(shared)[:, None] >= rows.cuts[row] - rows.starts[row]
            takes = self._takes(self._open, self._row[:shared], later, "bottom", "top")
            self._row[:shared] = np.where(takes, self._row[:shared], self._open)
        last = row + 1 == len(rows.starts)
        decided = rows.size if last else rows.starts[row + 1] - rows.starts[row]
        self._open = self._row[decided:]
        self._count(self._row[:decided])
        return self._row[:decided]

    def finish(self) -> Joined:
        """The segments, numbered by the first tile that has seen them and their place there.

        Without things, by class: segment s + 1 is class s, whether it occurs or not.
        """
        roots = np.array([self._root(part) for part in range(len(self._parents))])
        pixels = np.zeros(len(roots), np.int64)
        pixels[: len(self._areas)] = self._areas
        parts = pixels * np.array(self._scores) / np.array(self._seen).clip(1)
        areas = np.bincount(roots, pixels).astype(np.int64)
        weights = np.bincount(roots, parts)
        kept = np.flatnonzero(areas > 0) if self._is_thing.any() else np.arange(len(roots))
        kept = kept[kept > 0]
        ids = np.zeros(len(roots), np.uint32)
        ids[kept] = np.arange(1, len(kept) + 1)
        votes: dict[tuple[int, int], float] = {}
        for root, label, weight in zip(roots.tolist(), self._classes, parts.tolist()):
            votes[root, label] = votes.get((root, label), 0.0) + weight
        best: dict[int, tuple[float, int]] = {}
        for (root, label), weight in votes.items():
            best[root] = max(best.get(root, (-1.0, 0)), (weight, -label))
        classes = np.array([-best[root][1] for root in kept.tolist()], np.int64)
        return Joined(ids[roots], classes, weights[kept] / areas[kept].clip(1), areas[kept])

    def _number(self, found: TileSegments) -> np.ndarray:
        """(S + 1,) uint32: the part that each segment of a tile is; those of things are new."""
        areas = np.bincount(found.ids.ravel(), minlength=len(found.classes) + 1)[1:]
        borders = {side: set(np.unique(found.ids[place])) for side, place in _SIDES.items()}
        parts = [0]
        segments = zip(found.classes.tolist(), found.scores.tolist(), areas.tolist())
        for number, (label, score, area) in enumerate(segments, start=1):
            part = self._part(label)
            self._scores[part] += score * area
            self._seen[part] += area
            if self._is_thing[label]:
                for side, cut in borders.items():
                    self._is_whole[side][part] = number not in cut
            parts.append(part)
        return np.array(parts, np.uint32)

    def _part(self, label: int) -> int:
        """A part of a class, the same one for all stuff of the class."""
        part = len(self._parents)
        if not self._is_thing[label]:
            part = self._stuff.setdefault(label, part)
        if part == len(self._parents):
            self._parents.append(part)
            self._classes.append(label)
            self._scores.append(0.0)
            self._seen.append(0)
            for sides in self._is_whole.values():
                sides.append(False)
        return part

    def _takes(
        self, one: np.ndarray, other: np.ndarray, later: np.ndarray, end: str, start: str
    ) -> np.ndarray:
        """Where the second of two views of a zone decides, of the tiles whose borders are named."""
        first = np.array(self._is_whole[end])[one]
        second = np.array(self._is_whole[start])[other]
        unlike = (one == 0) != (other == 0)  # one sees nothing: 0.9 points of PQ on photographs
        return np.where(first != second, second, np.where(unlike, one == 0, later))

    def _count(self, rows: np.ndarray) -> None:
        """Add decided rows to the areas of the parts."""
        areas = np.zeros(len(self._parents), np.int64)
        areas[: len(self._areas)] = self._areas
        for start in range(0, len(rows), _COUNTED):
            counted = np.bincount(rows[start : start + _COUNTED].ravel(), minlength=len(areas))
            areas += counted
        self._areas = areas

    def _meet(self, one: np.ndarray, other: np.ndarray) -> None:
        """Join the things of two views of a zone."""
        pairs, counts = np.unique(
            one.astype(np.uint64) << np.uint64(32) | other, return_counts=True
        )
        views = []  # of each pair the object in either view, and its pixels there
        for parts in (pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)):
            objects = [self._root(part) for part in parts.tolist()]
            sums = dict.fromkeys(objects, 0)
            for thing, count in zip(objects, counts.tolist()):
                sums[thing] += count
            views.append((objects, sums))
        (first, seen), (second, seen_again) = views
        both: dict[tuple[int, int], int] = {}
        for a, b, count in zip(first, second, counts.tolist()):
            if a and b and a != b and self._are_things(a, b):
                both[a, b] = both.get((a, b), 0) + count
        for (a, b), count in both.items():
            if count > _SAME * (seen[a] + seen_again[b] - count):
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
