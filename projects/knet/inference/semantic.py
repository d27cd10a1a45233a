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
        self.scores, self.labels = scores, labels
        self._map = torch.zeros((num_classes, *size), device=scores.device)

    def add(self, first: int, probabilities: Tensor) -> None:
        """Take (n, H, W) probabilities of the kernels from `first` on into account."""
        part = slice(first, first + probabilities.shape[0])
        values = probabilities * self.scores[part, None, None]
        index = self.labels[part, None, None].expand_as(values)
        self._map.scatter_reduce_(0, index, values, "amax")

    def finish(self) -> Tensor:
        """(T + S, H, W) scores in [0, 1]."""
        return self._map
