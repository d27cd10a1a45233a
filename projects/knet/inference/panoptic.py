"""Panoptic fusion: every pixel goes to the kernel with the highest score times probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PanopticSegment:
    """One segment of a panoptic map; `area` in pixels, `label` in [0, T + S), things first."""

    id: int
    label: int
    is_thing: bool
    score: float
    area: int


def kernel_scores(
    class_scores: Tensor, *, num_things: int, num_thing_classes: int
) -> tuple[Tensor, Tensor]:
    """Score and label of every kernel.

    A thing kernel takes its best thing class, stuff kernel j the score of stuff class j.

    Args:
        class_scores: (N + S, T + S) probabilities.
        num_things: N.
        num_thing_classes: T.

    Returns:
        Scores (N + S,) and labels (N + S,) int64.
    """
    thing_scores, thing_labels = class_scores[:num_things, :num_thing_classes].max(dim=1)
    stuff_scores = class_scores[num_things:, num_thing_classes:].diagonal()
    stuff_labels = torch.arange(len(stuff_scores), device=class_scores.device) + num_thing_classes
    return torch.cat([thing_scores, stuff_scores]), torch.cat([thing_labels, stuff_labels])


class PanopticFusion:
    """Running argmax over a stream of kernels, then one pass over the segments.

    As published: all kernels compete for the pixels. Then, by descending score, a segment is
    dropped if it is a thing under `thing_threshold`, if it won no pixel, or if it won less than
    `overlap_threshold` of the pixels where its own probability is at least one half. Pixels of
    dropped segments become void; nobody inherits them. Ids start at 1, void is 0.

    Args:
        scores: (M,) of the kernels.
        labels: (M,) in [0, T + S).
        num_thing_classes: T; labels below it are things.
        size: (H, W) of the map.
        thing_threshold, overlap_threshold: see above.
    """

    def __init__(
        self,
        scores: Tensor,
        labels: Tensor,
        *,
        num_thing_classes: int,
        size: Sequence[int],
        thing_threshold: float = 0.3,
        overlap_threshold: float = 0.6,
    ) -> None:
        self.scores = scores
        self.labels = labels
        self.num_thing_classes = num_thing_classes
        self.thing_threshold = thing_threshold
        self.overlap_threshold = overlap_threshold
        self._best = torch.full(tuple(size), -1.0, device=scores.device)
        self._winner = torch.zeros(tuple(size), dtype=torch.int64, device=scores.device)
        self._own_area = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)

    def add(self, kernels: Sequence[int], probabilities: Tensor) -> None:
        """Let some kernels (n indices, ascending over all calls) compete with (n, H, W)."""
        index = torch.as_tensor(kernels, device=self.scores.device)
        self._own_area[index] = (probabilities >= 0.5).flatten(1).sum(1)
        value, winner = (probabilities * self.scores[index, None, None]).max(dim=0)
        better = value > self._best
        self._best = torch.where(better, value, self._best)
        self._winner = torch.where(better, index[winner], self._winner)

    def finish(self) -> tuple[Tensor, list[PanopticSegment]]:
        """The id map (H, W) int32 and its segments, by descending score."""
        count = len(self.scores)
        areas = torch.bincount(self._winner.flatten(), minlength=count)
        order = self.scores.argsort(descending=True, stable=True)
        # one copy to the CPU: everything that decides about the segments
        table = torch.stack([order, self.labels, areas, self._own_area]).cpu().tolist()
        scores = self.scores.cpu().tolist()
        segments: list[PanopticSegment] = []
        ids = [0] * count
        for kernel in table[0]:
            label, area, own_area = (column[kernel] for column in table[1:])
            is_thing = label < self.num_thing_classes
            if is_thing and scores[kernel] < self.thing_threshold:
                continue
            if area == 0 or own_area == 0 or area / own_area < self.overlap_threshold:
                continue
            ids[kernel] = len(segments) + 1
            segments.append(
                PanopticSegment(len(segments) + 1, label, is_thing, scores[kernel], area)
            )
        lookup = torch.tensor(ids, dtype=torch.int32, device=self.scores.device)
        return lookup[self._winner], segments
