"""The score from which on things count so that F1 is best."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from knet.report.matching import IGNORED, MATCH, Matching, Outcome
from knet.report.segments import Segment, Segments

__all__ = ["BestThreshold", "ScoreCounts"]

_STEPS = 100  # thresholds are hundredths, as the page's slider has them


@dataclass(frozen=True)
class BestThreshold:
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

    def add(self, truth: Segments, predicted: Segments, matching: Matching) -> None:
        """Count the things of an image; what has no score does not count."""
        for segment, outcome in zip(predicted.segments, matching.predicted):
            if self._counts(segment, outcome) and segment.score is not None:
                counts = self._right if outcome.status == MATCH else self._wrong
                counts[min(_STEPS, int(segment.score * _STEPS + 1e-6))] += 1
        self._true += sum(map(self._counts, truth.segments, matching.truth))

    def _counts(self, segment: Segment, outcome: Outcome) -> bool:
        return segment.label in self._things and outcome.status != IGNORED

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
