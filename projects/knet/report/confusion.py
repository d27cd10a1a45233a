"""Which class is taken for which: a matrix of counts, and what stands out in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from knet.report.matching import FALSE, IGNORED, Matching
from knet.report.segments import Segments

__all__ = ["Confusion", "ConfusionTable"]


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

    def add_segments(self, truth: Segments, predicted: Segments, matching: Matching) -> None:
        """Count the segments of an image."""
        for segment, outcome in zip(truth.segments, matching.truth):
            if outcome.status == IGNORED:
                continue
            column = -1
            if outcome.partner is not None:
                column = self._position[predicted.segments[outcome.partner].label]
            self.counts[self._position[segment.label], column] += 1
        for segment, outcome in zip(predicted.segments, matching.predicted):
            if outcome.status == FALSE:
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
        groups = [[k] for k in shown] + ([rest] if rest else []) + [[num_classes]]
        keys = [*shown, *([-2] if rest else []), -1]
        merge = np.zeros((len(groups), num_classes + 1), np.int64)
        for row, group in enumerate(groups):
            merge[row, group] = 1
        counts = merge @ self.counts @ merge.T
        # a row or column of nothing says nothing: pixels are neither missed nor false
        keep_row = [key >= 0 or bool(counts[k].any()) for k, key in enumerate(keys)]
        keep_column = [key >= 0 or bool(counts[:, k].any()) for k, key in enumerate(keys)]
        counts = counts[keep_row][:, keep_column]
        sums = counts.sum(1, keepdims=True)
        return ConfusionTable(
            [key for key, kept in zip(keys, keep_row) if kept],
            [key for key, kept in zip(keys, keep_column) if kept],
            counts,
            np.divide(counts, sums, out=np.zeros(counts.shape), where=sums > 0),
        )

    def most_frequent(self, limit: int = 10) -> list[tuple[int, int, int, float]]:
        """The largest errors as (true class, predicted class, count, share of the row).

        Classes are positions, -1 for false (as the true class) or missed (as the predicted one).
        """
        counts = self.counts.copy()
        np.fill_diagonal(counts, 0)
        sums = self.counts.sum(1)
        last = len(counts) - 1
        found = []
        for place in np.argsort(-counts, axis=None, kind="stable")[:limit].tolist():
            row, column = divmod(place, last + 1)
            count = int(counts[row, column])
            if count:
                ends = [-1 if k == last else k for k in (row, column)]
                found.append((ends[0], ends[1], count, count / int(sums[row])))
        return found
