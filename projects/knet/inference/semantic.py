"""A semantic map out of panoptic kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SemanticScores:
    """Per class, the highest score times probability of the kernels that carry its label.

    Its argmax is the label of the kernel that wins the pixel in panoptic fusion.

    Args:
        scores, labels: (M,) of the kernels.
        num_classes: T + S.
        size: (H, W) of the output.
    """

    def __init__(
        self, scores: Tensor, labels: Tensor, *, num_classes: int, size: Sequence[int]
    ) -> None:
        self.scores = scores
        self._labels = labels.tolist()
        self._map = torch.zeros((num_classes, *size), device=scores.device)

    def add(self, kernels: Sequence[int], probabilities: Tensor) -> None:
        """Take (n, H, W) probabilities of some kernels into account."""
        for kernel, probability in zip(kernels, probabilities):
            best = self._map[self._labels[kernel]]
            torch.maximum(best, probability * self.scores[kernel], out=best)

    def finish(self) -> Tensor:
        """(T + S, H, W) scores in [0, 1]."""
        return self._map
