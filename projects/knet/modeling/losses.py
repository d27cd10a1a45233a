"""The formulas of the losses, and the places at which masks are compared with their targets.

Every loss is a plain sum over one round of all images; the criterion divides by world-wide counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from knet.modeling.layers import at_least_float32

__all__ = ["world_mean_divisors"]


def focal_terms(
    logits: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Sigmoid focal loss of every logit, if it were a positive and if it were a negative.

    -alpha (1-p)^gamma log p and -(1-alpha) p^gamma log(1-p), of any shape (RetinaNet, eq. 5).
    """
    positive = alpha * (1 - logits.sigmoid()).pow(gamma) * F.softplus(-logits)
    return positive, negative_focal_terms(logits, alpha=alpha, gamma=gamma)


def negative_focal_terms(logits: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """The second of `focal_terms`, which is all that most logits need."""
    return (1 - alpha) * logits.sigmoid().pow(gamma) * F.softplus(logits)


def class_focal_sum(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of the sigmoid focal loss over kernels and classes.

    Args:
        logits: (..., K).
        labels: (...) class index; K means background, which is negative for every class.
        weights: (..., K), factor of each term.
    """
    positive, negative = focal_terms(logits)
    is_positive = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
    return (weights * torch.where(is_positive, positive, negative)).sum()


def cross_entropy_and_dice(logits: Tensor, targets: Tensor, *, eps: float = 1e-3) -> Tensor:
    """(2,): binary cross-entropy summed over masks and places, dice loss summed over masks.

    The dice loss of a mask is 1 - 2 <p, t> / (|p|^2 + |t|^2 + 2 eps).

    Args:
        logits: (M, P).
        targets: (M, P) in [0, 1].
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    p = logits.sigmoid()
    size = p.square().sum(1) + targets.square().sum(1) + 2 * eps
    return torch.stack([cross_entropy, (1 - 2 * (p * targets).sum(1) / size).sum()])


def owner_sum(logits: Tensor, owners: Tensor) -> Tensor:
    """Cross-entropy over kernels or classes, summed over places.

    As rank loss: the mask that owns a pixel must rank highest there (K-Net §3.5).

    Args:
        logits: (B, N, ...).
        owners: (B, ...) index in [0, N); a place of index -1 counts 0.
    """
    if not logits.shape[1]:
        return logits.sum()
    return F.cross_entropy(logits, owners, ignore_index=-1, reduction="sum")


def pixel_focal_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid focal loss over classes, summed over places.

    Args:
        logits: (B, K, ...).
        labels: (B, ...) class index; K means background.
    """
    num_classes = logits.shape[1]
    negative = negative_focal_terms(logits)
    # every logit counts as a negative, then the one labelled class of a place is corrected
    chosen = logits.gather(1, labels.clamp(max=num_classes - 1)[:, None])[:, 0]
    positive, wrong = focal_terms(chosen)
    return negative.sum() + ((positive - wrong) * (labels < num_classes)).sum()


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear (..., h, w) -> (..., H, W), at least float32; as `align_corners=False`."""
    maps = at_least_float32(maps)
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if not maps.numel():  # interpolate refuses it
        return maps.new_zeros((*maps.shape[:-2], *size)) + 0 * maps.sum()
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    large = F.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False)
    return large.view(*maps.shape[:-2], *size)


class Overlaps(NamedTuple):
    """What mask and dice costs are made of, over P places of each image.

    Attributes:
        inner: (B, N, G) sums of p t.
        mask_sum, mask_square: (B, N) sums of p and p^2.
        object_sum, object_square: (B, G) sums of t and t^2.
        places: P.
    """

    inner: Tensor
    mask_sum: Tensor
    mask_square: Tensor
    object_sum: Tensor
    object_square: Tensor
    places: int

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor) -> Overlaps:
        """Of logits (B, N, P) and targets (B, G, P) in [0, 1]."""
        p, t = logits.sigmoid(), targets.to(logits.dtype)
        return cls(
            torch.bmm(p, t.transpose(1, 2)), p.sum(2), p.square().sum(2),
            t.sum(2), t.square().sum(2), logits.shape[2],
        )  # fmt: skip


class AllPixels:
    """Every pixel of the targets, to whose size the masks are enlarged; as published."""

    def count(self, size: Sequence[int]) -> int:
        """Number of places in an image whose targets have this (height, width)."""
        return size[0] * size[1]

    def overlaps(self, masks: Tensor, objects: Tensor) -> Overlaps:
        """Of (B, N, h, w) logits with objects (B, G, H, W)."""
        return Overlaps.of(enlarge(masks, objects.shape[-2:]).flatten(2), objects.flatten(2))

    def mask_sums(self, masks: Tensor, objects: Tensor, rows: Tensor) -> Tensor:
        """(2,): see `cross_entropy_and_dice`.

        Args:
            masks: (M, h, w) logits.
            objects: (G, H, W).
            rows: (M,) the object of each mask.
        """
        logits = enlarge(masks, objects.shape[-2:]).flatten(1)
        return cross_entropy_and_dice(logits, objects[rows].flatten(1).to(logits.dtype))

    def owner_sum(self, masks: Tensor, owners: Tensor) -> Tensor:
        """See `owner_sum`; masks (B, N, h, w), owners (B, H, W)."""
        return owner_sum(enlarge(masks, owners.shape[-2:]), owners)

    def class_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `pixel_focal_sum`; logits (B, K, h, w), labels (B, H, W)."""
        return pixel_focal_sum(enlarge(logits, labels.shape[-2:]), labels)


class RecomputedPixels(AllPixels):
    """The same sums, which keep no enlarged map: the backward pass enlarges the masks again."""

    def mask_sums(self, masks: Tensor, objects: Tensor, rows: Tensor) -> Tensor:
        """As of `AllPixels`."""
        return checkpoint(super().mask_sums, masks, objects, rows, use_reentrant=False)

    def owner_sum(self, masks: Tensor, owners: Tensor) -> Tensor:
        """As of `AllPixels`."""
        return checkpoint(super().owner_sum, masks, owners, use_reentrant=False)

    def class_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As of `AllPixels`."""
        return checkpoint(super().class_sum, logits, labels, use_reentrant=False)


class SampledPoints:
    """Points of each image and mask, drawn anew at every use (Mask2Former §3.3).

    Costs and the rank loss see points spread evenly; a mask's own losses see points of which a
    share lies where the mask is least certain, found among several times as many. The dense class
    loss sees every pixel.

    Effect on short trainings (docs/ABLATION.md): scenes -1.2 PQ, nuclei -2.2 AP, photos +0.0 PQ.

    Args:
        num_points: for each image, or each mask.
        oversample: candidates for each uncertain point.
        uncertain: share of the uncertain points.

    Attributes:
        dense: the places of the dense class loss.
    """

    def __init__(
        self, num_points: int, *, oversample: float = 3.0, uncertain: float = 0.75
    ) -> None:
        self.num_points = num_points
        self.candidates = int(num_points * oversample)
        self.num_uncertain = int(num_points * uncertain)
        self.dense: AllPixels = RecomputedPixels()

    def count(self, size: Sequence[int]) -> int:
        """Number of places in an image, whatever the size of the targets."""
        return self.num_points

    def overlaps(self, masks: Tensor, objects: Tensor) -> Overlaps:
        """As of `AllPixels`, at the same P points of all masks and objects of an image."""
        points = torch.rand(len(masks), self.num_points, 2, device=masks.device)
        return Overlaps.of(sample(masks, points), sample(objects, points))

    def mask_sums(self, masks: Tensor, objects: Tensor, rows: Tensor) -> Tensor:
        """As of `AllPixels`, over P points of each mask."""
        with torch.no_grad():
            points = self._points(masks)
            targets = sample(objects[rows][:, None], points)[:, 0]
        return cross_entropy_and_dice(sample(masks[:, None], points)[:, 0], targets)

    def owner_sum(self, masks: Tensor, owners: Tensor) -> Tensor:
        """As of `AllPixels`, over P points of each image."""
        points = torch.rand(len(masks), self.num_points, 2, device=masks.device)
        height, width = owners.shape[-2:]
        column, row = (points[..., 0] * width).long(), (points[..., 1] * height).long()
        flat = row.clamp(max=height - 1) * width + column.clamp(max=width - 1)
        return owner_sum(sample(masks, points), owners.flatten(1).gather(1, flat))

    def class_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As of `AllPixels`."""
        return self.dense.class_sum(logits, labels)

    def _points(self, masks: Tensor) -> Tensor:
        """(M, P, 2) of masks (M, h, w)."""
        drawn = torch.rand(len(masks), self.candidates, 2, device=masks.device)
        certainty = sample(masks[:, None], drawn)[:, 0].abs()
        index = certainty.topk(self.num_uncertain, dim=1, largest=False).indices
        chosen = drawn.gather(1, index[..., None].expand(-1, -1, 2))
        rest = self.num_points - self.num_uncertain
        return torch.cat([torch.rand(len(masks), rest, 2, device=masks.device), chosen], dim=1)


Places = AllPixels | SampledPoints


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps (B, N, h, w) at points, at least float32 (B, N, P).

    Args:
        maps: of any type.
        points: (B, P, 2): x and y in [0, 1].
    """
    maps = at_least_float32(maps)
    if not maps.numel():
        return maps.new_zeros((*maps.shape[:2], points.shape[1])) + 0 * maps.sum()
    grid = points[:, None].to(maps.dtype) * 2 - 1
    # beyond the outermost pixel centres the edge goes on, as in bilinear enlargement
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[:, :, 0]


def world_mean_divisors(counts: Tensor) -> Tensor:
    """Counts summed over all processes, at least 1, divided by the number of processes.

    A local sum divided by this, averaged over the processes (as DistributedDataParallel does with
    gradients), is the sum over all divided by the count of all.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return counts.clamp(min=1)
    dist.all_reduce(counts)
    return counts.clamp(min=1) / dist.get_world_size()
