"""Instances: the top k pairs of thing kernel and class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class InstanceResult:
    """Instances of one image by descending score.

    Attributes:
        scores: (k,) class probability; the mask does not change it.
        labels: (k,) int64 in [0, T).
        masks: (k, H, W) boolean; a mask may be empty.
        boxes: (k, 4) float, x0 y0 x1 y1 around the mask in pixels; zeros if it is empty.
    """

    scores: Tensor
    labels: Tensor
    masks: Tensor
    boxes: Tensor


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes (N, 4) float around boolean masks (N, H, W); zeros for an empty mask."""

    def extent(hit: Tensor) -> tuple[Tensor, Tensor]:
        # argmax finds the first hit; on the reversed axis, the last
        hit = hit.to(torch.uint8)
        return hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)

    if not len(masks):
        return torch.zeros(0, 4, device=masks.device)
    columns, rows = masks.any(1), masks.any(2)
    x0, x1 = extent(columns)
    y0, y1 = extent(rows)
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * columns.any(1)[:, None]


class InstanceSelection:
    """Top k over kernels and classes; each chosen kernel is resized once, however often chosen.

    Args:
        class_scores: (N, T) probabilities of the thing kernels.
        top_k: how many to keep; fewer are returned when N * T is smaller.
        score_threshold: instances under this score are left out.
        mask_threshold: a pixel belongs to the mask where its probability is above this.
        size: (H, W) of the output.
    """

    def __init__(
        self,
        class_scores: Tensor,
        *,
        top_k: int,
        size: Sequence[int],
        score_threshold: float = 0.0,
        mask_threshold: float = 0.5,
    ) -> None:
        flat = class_scores.flatten()
        self.scores, index = flat.topk(min(top_k, len(flat)))
        if score_threshold > 0:
            kept = self.scores >= score_threshold
            self.scores, index = self.scores[kept], index[kept]
        num_classes = class_scores.shape[1]
        self.labels = index % num_classes
        distinct, self._slot = torch.unique(index // num_classes, return_inverse=True)
        self.kernels: list[int] = distinct.tolist()
        self._position = {kernel: i for i, kernel in enumerate(self.kernels)}
        self.mask_threshold = mask_threshold
        self._masks = torch.zeros(
            (len(self.kernels), *size), dtype=torch.bool, device=class_scores.device
        )

    def add(self, kernels: Sequence[int], probabilities: Tensor) -> None:
        """Take the masks of chosen kernels out of (n, H, W) probabilities of kernels."""
        for kernel, probability in zip(kernels, probabilities):
            if kernel in self._position:
                self._masks[self._position[kernel]] = probability > self.mask_threshold

    def finish(self) -> InstanceResult:
        """The instances, by descending score."""
        boxes = mask_boxes(self._masks)
        return InstanceResult(self.scores, self.labels, self._masks[self._slot], boxes[self._slot])
