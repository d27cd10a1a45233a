"""What a report counts over all images: which class is taken for which, and things by score."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from knet.classes import Category
from knet.report.segments import FALSE, IGNORED, MATCH, Segment, Segments

_STEPS = 100  # thresholds are hundredths, as the page's slider has them
# ends of the confusion's rows and columns that are no class, by their key
_MISSING, _REST = -1, -2
_NAMES = {
    _MISSING: ("found, but not there", "missed"),
    _REST: ("other classes", "other classes"),
}

Row = tuple[int, str, list[tuple[int, float, bool]]]


class Confusion:
    """Counts of (true class, predicted class).

    Args:
        categories: the classes, in the order of rows and columns. One more row counts what was
            found where nothing is, one more column what was not found.
    """

    def __init__(self, categories: Sequence[Category]) -> None:
        self._categories = categories
        self._position = {category.label: k for k, category in enumerate(categories)}
        self.counts = np.zeros((len(categories) + 1, len(categories) + 1), np.int64)

    def add_segments(self, truth: Segments, predicted: Segments) -> None:
        """Count the segments of an image, once they are matched."""
        for segment in truth.segments:
            if segment.status != IGNORED:
                column = -1 if segment.partner is None else self._position[segment.partner.label]
                self.counts[self._position[segment.label], column] += 1
        for segment in predicted.segments:
            if segment.status == FALSE:
                self.counts[-1, self._position[segment.label]] += 1

    def add_pixels(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Count the pixels of an image; label maps (H, W) uint8, 255 for void."""
        table = np.full(256, len(self._position), np.int64)
        for label, position in self._position.items():
            table[label] = position
        known = table[truth] < len(self._position)
        size = len(self.counts)
        pairs = table[truth[known]] * size + table[predicted[known]]
        self.counts += np.bincount(pairs, minlength=size * size).reshape(size, size)

    def table(self, limit: int = 40) -> tuple[list[Row], list[tuple[int, str]]]:
        """The matrix of the classes that occur.

        Of more than ``limit``, those with the most errors are shown by themselves.

        Returns:
            Rows: label, name and cells (count, share of the row, whether it is right); columns:
            label and name. A label below 0 is none.
        """
        num_classes = len(self._categories)
        sums = self.counts.sum(0) + self.counts.sum(1)
        errors = sums - 2 * self.counts.diagonal()
        present = [k for k in range(num_classes) if sums[k]]
        shown = sorted(sorted(present, key=lambda k: -errors[k])[:limit])
        rest = sorted(set(present) - set(shown))
        groups = {**{k: [k] for k in shown}, _REST: rest, _MISSING: [num_classes]}
        merge = np.zeros((len(groups), num_classes + 1), np.int64)
        for row, group in enumerate(groups.values()):
            merge[row, group] = 1
        counts = merge @ self.counts @ merge.T
        # a row or column of nothing says nothing: pixels are neither missed nor false
        keys = np.array(list(groups))
        rows, columns = (keys >= 0) | counts.any(1), (keys >= 0) | counts.any(0)
        counts = counts[rows][:, columns]
        sums = counts.sum(1, keepdims=True)
        shares = np.divide(counts, sums, out=np.zeros(counts.shape), where=sums > 0)
        right = (keys[rows, None] == keys[columns]) & (keys[rows, None] >= 0)
        cells = [list(zip(*row)) for row in zip(counts.tolist(), shares.tolist(), right.tolist())]
        heads = [self._end(key, 0) for key in keys[rows].tolist()]
        return (
            [(*head, row) for head, row in zip(heads, cells)],
            [self._end(key, 1) for key in keys[columns].tolist()],
        )

    def most_frequent(self, limit: int = 10) -> list[tuple[str, str, int, float]]:
        """The largest errors as (true class, predicted class, count, share of the row)."""
        errors = self.counts.copy()
        np.fill_diagonal(errors, 0)
        keys = [*range(len(self._categories)), _MISSING]
        found = []
        for place in np.argsort(-errors, axis=None, kind="stable")[:limit].tolist():
            row, column = divmod(place, len(errors))
            count = int(errors[row, column])
            if count:
                names = self._end(keys[row], 0)[1], self._end(keys[column], 1)[1]
                found.append((*names, count, count / int(self.counts[row].sum())))
        return found

    def _end(self, key: int, axis: int) -> tuple[int, str]:
        """Label and name of a row (axis 0) or column."""
        if key < 0:
            return key, _NAMES[key][axis]
        return self._categories[key].label, self._categories[key].name


class BestThreshold(NamedTuple):
    """A score threshold and the F1 of all things together from it on, in [0, 1]."""

    score: float
    f1: float


class ScoreCounts:
    """Right and wrong things by score, and the number of true ones.

    Matches go by descending score within a class, so those above a threshold are the same whatever
    is found below it: one matching of all serves every threshold.

    Args:
        things: labels of the thing classes.
    """

    def __init__(self, things: Collection[int]) -> None:
        self._things = frozenset(things)
        self._right = np.zeros(_STEPS + 1, np.int64)
        self._wrong = np.zeros(_STEPS + 1, np.int64)
        self._true = 0

    def add(self, truth: Segments, predicted: Segments) -> None:
        """Count the things of an image, once all are matched; what has no score does not count."""
        for segment in predicted.segments:
            if self._counts(segment) and segment.score is not None:
                counts = self._right if segment.status == MATCH else self._wrong
                counts[min(_STEPS, int(segment.score * _STEPS + 1e-6))] += 1
        self._true += sum(map(self._counts, truth.segments))

    def _counts(self, segment: Segment) -> bool:
        return segment.label in self._things and segment.status != IGNORED

    def best(self) -> BestThreshold | None:
        """The middle one of the thresholds whose F1 is the highest; None without a right thing."""
        if not self._right.any():
            return None
        f1 = self._f1()
        places = np.flatnonzero(f1 == f1.max())
        place = int(places[len(places) // 2])
        return BestThreshold(place / _STEPS, float(f1[place]))

    def at(self, score: float) -> float:
        """F1 from a threshold on, a hundredth, in [0, 1]."""
        return float(self._f1()[round(score * _STEPS)])

    def _f1(self) -> np.ndarray:
        right, wrong = (np.cumsum(c[::-1])[::-1] for c in (self._right, self._wrong))
        total = right + wrong + self._true
        return np.divide(2 * right, total, out=np.zeros(len(total)), where=total > 0)
