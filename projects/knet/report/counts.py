"""What a report counts over all images: which class is taken for which, and things by score."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from knet.report.segments import FALSE, IGNORED, MATCH, Segment, Segments

_STEPS = 100  # thresholds are hundredths, as the page's slider has them


@dataclass(frozen=True)
class ConfusionTable:
    """A matrix that can be shown.

    Attributes:
        rows, columns: positions of classes; -1 stands for missed or false, -2 for all classes
            that are not shown by themselves.
        counts: (rows, columns) int64.
        shares: of the row's sum, in [0, 1].
    """

    rows: list[int]
    columns: list[int]
    counts: np.ndarray
    shares: np.ndarray


class Confusion:
    """Counts of (true class, predicted class).

    Args:
        labels: of the classes, in the order of rows and columns. One more row counts what was
            found where nothing is, one more column what was not found.
    """

    def __init__(self, labels: Sequence[int]) -> None:
        self._position = {label: k for k, label in enumerate(labels)}
        self.counts = np.zeros((len(labels) + 1, len(labels) + 1), np.int64)

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

    def table(self, limit: int = 40) -> ConfusionTable:
        """The matrix of the classes that occur.

        Of more than ``limit``, those with the most errors are shown by themselves.
        """
        num_classes = len(self._position)
        sums = self.counts.sum(0) + self.counts.sum(1)
        errors = sums - 2 * self.counts.diagonal()
        present = [k for k in range(num_classes) if sums[k]]
        shown = sorted(sorted(present, key=lambda k: -errors[k])[:limit])
        rest = sorted(set(present) - set(shown))
        groups = {**{k: [k] for k in shown}, -2: rest, -1: [num_classes]}
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
        return ConfusionTable(keys[rows].tolist(), keys[columns].tolist(), counts, shares)

    def most_frequent(self, limit: int = 10) -> list[tuple[int, int, int, float]]:
        """The largest errors as (true class, predicted class, count, share of the row).

        Classes are positions, -1 for false (as the true class) or missed (as the predicted one).
        """
        errors = self.counts.copy()
        np.fill_diagonal(errors, 0)
        keys = [*range(len(self._position)), -1]
        found = []
        for place in np.argsort(-errors, axis=None, kind="stable")[:limit].tolist():
            row, column = divmod(place, len(errors))
            count = int(errors[row, column])
            if count:
                share = count / int(self.counts[row].sum())
                found.append((keys[row], keys[column], count, share))
        return found


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
