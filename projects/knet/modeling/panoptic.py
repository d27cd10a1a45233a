"""Panoptic fusion: every pixel goes to the kernel with the highest score times probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PanopticSegment:
    """One segment of a panoptic map.

    `label` in [0, T + S), things first; `area` in pixels; `kernel` in [0, M), which found it.
    """

    id: int
    label: int
    is_thing: bool
    score: float
    area: int
    kernel: int


def kernel_scores(
    class_scores: Tensor, *, num_things: int, num_thing_classes: int
) -> tuple[Tensor, Tensor]:
    """Score and label of every kernel.

    A thing kernel takes its best thing class, stuff kernel j the score of stuff class j.

    Args:
        class_scores: (N + S, T + S) probabilities.
        num_things: N, 0 if T is.
        num_thing_classes: T.

    Returns:
        Scores (N + S,) and labels (N + S,) int64.
    """
    stuff_scores = class_scores[num_things:, num_thing_classes:].diagonal()
    stuff_labels = torch.arange(len(stuff_scores), device=class_scores.device) + num_thing_classes
    if not num_thing_classes:
        return stuff_scores, stuff_labels
    thing_scores, thing_labels = class_scores[:num_things, :num_thing_classes].max(dim=1)
    return torch.cat([thing_scores, stuff_scores]), torch.cat([thing_labels, stuff_labels])


class PanopticFusion:
    """Running argmax over a stream of kernels, then one pass over the segments.

    As published: all kernels compete for the pixels. Then, by descending score, a segment is
    dropped if it is a thing under `thing_threshold`, or stuff under `stuff_threshold` (published:
    none is), if it won no pixel, or if it won less than
    `overlap_threshold` of the pixels where its own probability is at least one half. Pixels of
    dropped segments become void; nobody inherits them. Ids start at 1, void is 0.

    With `chosen`, only those kernels compete. A pixel stays void where the winner's own
    probability is under one half and a kernel left out has the higher score times probability:
    else the last class chosen would flood the image. Choosing all kernels changes nothing.

    Args:
        scores: (M,) of the kernels.
        labels: (M,) in [0, T + S).
        num_thing_classes: T; labels below it are things.
        size: (H, W) of the map.
        thing_threshold, stuff_threshold, overlap_threshold: see above.
        min_area: segments of fewer pixels are dropped too.
        chosen: (M,) boolean; None for all.
    """

    def __init__(
        self,
        scores: Tensor,
        labels: Tensor,
        *,
        num_thing_classes: int,
        size: Sequence[int],
        thing_threshold: float = 0.3,
        stuff_threshold: float = 0.0,
        overlap_threshold: float = 0.6,
        min_area: int = 0,
        chosen: Tensor | None = None,
    ) -> None:
        self.scores = scores
        self.labels = labels
        self.num_thing_classes = num_thing_classes
        self.thing_threshold = thing_threshold
        self.stuff_threshold = stuff_threshold
        self.overlap_threshold = overlap_threshold
        self.min_area = max(min_area, 1)
        size, device = tuple(size), scores.device
        self.best = torch.zeros(size, device=device)
        # without a choice somebody wins even where all probabilities are 0; else M, for nobody
        nobody = 0 if chosen is None and len(scores) else len(scores)
        # a float map, for the same vectorised operations; kernels are far fewer than 2^24
        self._winner = torch.full(size, float(nobody), device=device)
        self._competing, self._rivals = scores, None
        if chosen is not None:
            self._competing, self._rivals = scores * chosen, scores * ~chosen
            self._best_rival = torch.zeros(size, device=device)
            self._certain = torch.zeros(size, device=device)
        self.own_areas = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)

    def add(self, first: int, probabilities: Tensor) -> None:
        """Let the kernels from `first` on compete with (n, H, W); ascending over all calls."""
        part = slice(first, first + probabilities.shape[0])
        self.own_areas[part] = (probabilities >= 0.5).flatten(1).sum(1)
        value, winner = (probabilities * self._competing[part, None, None]).max(dim=0)
        better = value > self.best
        if self._rivals is not None:
            rival = (probabilities * self._rivals[part, None, None]).amax(dim=0)
            torch.maximum(self._best_rival, rival, out=self._best_rival)
            certain = (probabilities.gather(0, winner[None])[0] >= 0.5).float()
            self._certain = torch.where(better, certain, self._certain)
        self.best = torch.where(better, value, self.best)
        self._winner = torch.where(better, (winner + first).float(), self._winner)

    def winner(self) -> Tensor:
        """(H, W) int64: the kernel that wins each pixel; M where nobody does."""
        winner = self._winner.long()
        if self._rivals is None:
            return winner
        lost = (self._certain == 0) & (self._best_rival > self.best)
        return winner.masked_fill(lost, self.scores.shape[0])

    def areas(self, winner: Tensor) -> Tensor:
        """(M,) int64: the pixels that each kernel wins."""
        count = self.scores.shape[0]
        areas = torch.zeros(count + 1, dtype=torch.int64, device=winner.device)
        pixels = winner.flatten()
        return areas.scatter_add(0, pixels, torch.ones_like(pixels))[:count]

    def segments(
        self, scores: Tensor, labels: Tensor, areas: Tensor, own_areas: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which kernels become segments, from (M,) tensors on any device.

        Returns:
            Ids (M + 1,) int32 of the segments that kernels become, 0 for none, and the kernels
            of segments 1, 2, …
        """
        # in double precision, as the thresholds are
        is_thing, exact = labels < self.num_thing_classes, scores.double()
        weak = is_thing & (exact < self.thing_threshold)
        if self.stuff_threshold > 0:
            weak = weak | (~is_thing & (exact < self.stuff_threshold))
        overlap = areas.double() / own_areas.clamp(min=1)
        kept = ~weak & (areas >= self.min_area) & (own_areas > 0)
        kept = kept & (overlap >= self.overlap_threshold)
        order = scores.argsort(descending=True, stable=True)
        kept = kept[order]
        ids = torch.zeros(scores.shape[0] + 1, dtype=torch.int64, device=scores.device)
        ids = ids.scatter(0, order, kept.cumsum(0) * kept)
        return ids.int(), order[kept]

    def decisive(self, winner: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores, labels, areas won and own areas (M,) of all kernels, on the CPU."""
        # in one copy, exact in float64
        decisive = [self.scores, self.labels, self.areas(winner), self.own_areas]
        table = torch.stack([values.double() for values in decisive]).cpu()
        return table[0], *table[1:].long()

    def finish(self) -> tuple[Tensor, list[PanopticSegment]]:
        """The id map (H, W) int32 and its segments, by descending score."""
        winner = self.winner()
        scores, labels, areas, own_areas = self.decisive(winner)
        ids, kernels = self.segments(scores, labels, areas, own_areas)
        segments = [
            PanopticSegment(number, label, label < self.num_thing_classes, score, area, kernel)
            for number, (label, score, area, kernel) in enumerate(
                zip(
                    *(
                        x.tolist()
                        for x in (labels[kernels], scores[kernels], areas[kernels], kernels)
                    )
                ),
                start=1,
            )
        ]
        return ids.to(winner.device)[winner], segments
