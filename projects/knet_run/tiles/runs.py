"""Run lengths of the segments of a large map, as COCO has them: down the columns.

Runs go to a file, column by column, and come back segment by segment: what is in memory does not
grow with the map.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_LOADED = 1_000_000  # runs that are in memory at once, or those of one segment


class RunStore:
    """The runs of all segments.

    Args:
        folder: for its files, which whoever made it removes.
        height: rows of the map.
        count: S; ids are 1 to S.
    """

    def __init__(self, folder: Path, *, height: int, count: int) -> None:
        self._folder = folder
        self._height = height
        self._files: list[Path] = []
        self._counts = np.zeros(count + 1, np.int64)  # runs of each segment

    def add(self, first: int, ids: np.ndarray) -> None:
        """Take the next columns.

        Args:
            first: number of the first one.
            ids: (H, w), 0 for void.
        """
        flat = ids.T.ravel()
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        lengths = np.diff(starts, append=flat.size)
        values = flat[starts].astype(np.int64)
        # in the order of the map for each segment
        order = np.argsort(values, kind="stable")
        order = order[values[order] > 0]
        runs = np.stack([values, starts + first * self._height, lengths])[:, order]
        self._counts += np.bincount(runs[0], minlength=len(self._counts))
        self._files.append(self._folder / f"runs-{len(self._files)}.npy")
        np.save(self._files[-1], runs)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Starts and lengths of the runs of segment 1, 2, …; positions count down the columns."""
        first, count = 1, len(self._counts)
        while first < count:
            sums = np.cumsum(self._counts[first:])
            last = first + max(1, int(np.searchsorted(sums, _LOADED, side="right")))
            runs = np.concatenate([_between(file, first, last) for file in self._files], axis=1)
            runs = runs[:, np.argsort(runs[0], kind="stable")]
            bounds = np.searchsorted(runs[0], np.arange(first, last + 1))
            for start, end in itertools.pairwise(bounds):
                yield _merged(runs[1, start:end], runs[2, start:end])
            first = last


def _between(file: Path, first: int, last: int) -> np.ndarray:
    """The runs of segments `first` to `last`, without the latter."""
    runs = np.load(file, mmap_mode="r")
    start, end = np.searchsorted(runs[0], [first, last])
    return np.array(runs[:, start:end])


def _merged(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs that go on where others ended, in the next columns that were added, are one."""
    begins = np.flatnonzero(starts[1:] != starts[:-1] + lengths[:-1]) + 1
    begins = np.concatenate([[0], begins])[: len(starts)]
    return starts[begins], np.add.reduceat(lengths, begins) if len(starts) else lengths


def bounding_box(starts: np.ndarray, lengths: np.ndarray, height: int) -> list[int]:
    """x, y, width, height around a segment of one run or more."""
    last = starts + lengths - 1
    x, right = int(starts[0] // height), int(last[-1] // height)
    whole = bool((starts // height != last // height).any())  # from one column into the next
    y = 0 if whole else int((starts % height).min())
    bottom = height - 1 if whole else int((last % height).max())
    return [x, y, right + 1 - x, bottom + 1 - y]
