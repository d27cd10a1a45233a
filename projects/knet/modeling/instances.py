"""Instances: the top k pairs of thing kernel and class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from knet.modeling.layers import to_device


@dataclass
class InstanceResult:
    """Instances of one image by descending score.

    Attributes:
        scores: (k,) class probability; the mask does not change it.
        labels: (k,) int64 in [0, T).
        masks: (k, H, W) boolean; a mask may be empty.
        boxes: (k, 4) float, x0 y0 x1 y1 around the mask in pixels; zeros if it is empty.
        kernels: (k,) int64, which found each; one kernel may have several, of different classes.
    """

    scores: Tensor
    labels: Tensor
    masks: Tensor
    boxes: Tensor
    kernels: Tensor


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes (N, 4) float around boolean masks (N, H, W); zeros for an empty mask."""

    def extent(hit: Tensor) -> tuple[Tensor, Tensor]:
        # argmax finds the first hit; on the reversed axis, the last
        return hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)

    if not len(masks):
        return torch.zeros(0, 4, device=masks.device)
    # of 100 masks of 480x640 10 ms on a CPU core; `any` takes 170, and 8 bytes a pixel in ONNX
    bits = masks.to(torch.uint8)
    columns, rows = bits.amax(1), bits.amax(2)
    x0, x1 = extent(columns)
    y0, y1 = extent(rows)
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * columns.amax(1)[:, None]


def best_pairs(
    class_scores: Tensor, *, top_k: int, classes: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of kernel and class, by descending score.

    Args:
        class_scores: (N, T) probabilities of the thing kernels.
        top_k: how many; fewer are returned when there are fewer pairs.
        classes: (c,) int64, those that take part; None for all.

    Returns:
        Scores, labels in [0, T) and kernels in [0, N), (k,) each.
    """
    if classes is not None:
        class_scores = class_scores[:, classes]
    flat = class_scores.flatten()
    scores, index = flat.topk(min(top_k, flat.shape[0]))
    num_classes = max(class_scores.shape[1], 1)
    labels = index % num_classes
    return scores, labels if classes is None else classes[labels], index // num_classes


def ranked(
    scores: Tensor,
    areas: Tensor,
    sums: Tensor | None = None,
    *,
    score_threshold: float = 0.0,
    min_area: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """What stays of instances once their masks are known, by descending score.

    Args:
        scores: (k,) descending.
        areas: (k,) int64 pixels of the masks.
        sums: (k,) of the probabilities inside the masks, whose mean is a factor of the score; None
            for no such factor.
        score_threshold, min_area: of what stays.

    Returns:
        Scores (n,) and places (n,) in [0, k) of those that stay; None in place of all k.
    """
    order = None
    if sums is not None:
        scores, order = (scores * (sums / areas.clamp(min=1))).sort(descending=True, stable=True)
    kept = None
    if score_threshold > 0:
        kept = scores >= score_threshold
    if min_area > 0:
        large = (areas if order is None else areas[order]) >= min_area
        kept = large if kept is None else kept & large
    if kept is not None:
        places = kept.nonzero()[:, 0]
        scores, order = scores[places], places if order is None else order[places]
    return scores, order


class InstanceSelection:
    """Top k over kernels and classes; each chosen kernel is resized once, however often chosen.

    Args:
        class_scores: (N, T) probabilities of the thing kernels.
        top_k: how many to keep; fewer are returned when N * T is smaller.
        score_threshold: instances under this score are left out.
        mask_threshold: a pixel belongs to the mask where its probability is above this.
        min_area: instances of fewer pixels are left out, after the top k; 0 keeps empty masks.
        classes: (c,) int64, the classes that take part in the top k; None for all.
        mask_scores: multiply each score by the mean probability inside its mask (MaskFormer's
            ranking), after the top k; thresholds and order follow the product. Effect of leaving
            it out (docs/ABLATION.md): nuclei -5.4 AP.
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
        min_area: int = 0,
        classes: Tensor | None = None,
        mask_scores: bool = False,
    ) -> None:
        self.scores, self.labels, kernels = best_pairs(class_scores, top_k=top_k, classes=classes)
        self.score_threshold = score_threshold
        if score_threshold > 0:  # a product of scores is no higher
            kept = self.scores >= score_threshold
            self.scores, self.labels, kernels = self.scores[kept], self.labels[kept], kernels[kept]
        self._found_by = kernels
        # the places of each kernel in the result
        self._slots: dict[int, list[int]] = {}
        for slot, kernel in enumerate(kernels.tolist()):
            self._slots.setdefault(kernel, []).append(slot)
        self.kernels: list[int] = sorted(self._slots)
        self.mask_threshold = mask_threshold
        self.min_area = min_area
        count, device = len(kernels), class_scores.device
        # written in place: with hundreds of instances these masks are most of the memory
        self._masks = torch.zeros((count, *size), dtype=torch.bool, device=device)
        self._boxes = torch.zeros((count, 4), device=device)
        self._areas = torch.zeros(count, dtype=torch.int64, device=device)
        self._sums = torch.zeros(count, device=device) if mask_scores else None

    def add(self, kernels: Sequence[int], probabilities: Tensor) -> None:
        """Take the masks of chosen kernels out of (n, H, W) probabilities of kernels."""
        found = enumerate(self._slots.get(kernel, ()) for kernel in kernels)
        pairs = [(slot, row) for row, slots in found for slot in slots]
        if not pairs:
            return
        slot, row = to_device(torch.tensor(pairs).T.contiguous(), probabilities.device).unbind()
        masks = probabilities > self.mask_threshold
        self._masks[slot] = masks[row]
        self._boxes[slot] = mask_boxes(masks)[row]
        if self.min_area > 0 or self._sums is not None:
            # floats of a line first: sums of booleans are slow, and of whole maps inexact
            self._areas[slot] = masks.float().sum(2).long().sum(1)[row]
        if self._sums is not None:
            self._sums[slot] = (probabilities * masks).flatten(1).sum(1)[row]

    def finish(self) -> InstanceResult:
        """The instances, by descending score."""
        scores, order = ranked(
            self.scores, self._areas, self._sums,
            score_threshold=self.score_threshold if self._sums is not None else 0.0,
            min_area=self.min_area,
        )  # fmt: skip
        if order is None:
            return InstanceResult(scores, self.labels, self._masks, self._boxes, self._found_by)
        return InstanceResult(
            scores,
            self.labels[order],
            self._masks[order],
            self._boxes[order],
            self._found_by[order],
        )
