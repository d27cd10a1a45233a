"""Elementary losses, each a plain sum; the criterion divides by world-wide counts.

All take logits and work in float32.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def focal_terms(logits: Tensor, *, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Sigmoid focal loss of every logit, if it were a positive and if it were a negative.

    -alpha (1-p)^gamma log p and -(1-alpha) p^gamma log(1-p), of any shape (RetinaNet, eq. 5).
    """
    p = logits.sigmoid()
    positive = alpha * (1 - p).pow(gamma) * F.softplus(-logits)
    negative = (1 - alpha) * p.pow(gamma) * F.softplus(logits)
    return positive, negative


def class_focal_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sum of the sigmoid focal loss over kernels and classes.

    Args:
        logits: (M, K).
        labels: (M,) class index; K means background, which is negative for every class.
        weights: (M, K), factor of each term.
    """
    positive, negative = focal_terms(logits, alpha=alpha, gamma=gamma)
    is_positive = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
    return (weights * torch.where(is_positive, positive, negative)).sum()


def pixel_focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sum of the sigmoid focal loss over classes and pixels.

    Every logit is counted as a negative, then the one labelled class of each foreground pixel is
    corrected: no one-hot map is built.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) class index; K means background.
    """
    num_classes = logits.shape[1]
    probability = logits.sigmoid()
    total = ((1 - alpha) * probability.pow(gamma) * F.softplus(logits)).sum()
    foreground = labels < num_classes
    chosen = logits.gather(1, labels.clamp(max=num_classes - 1)[:, None])[:, 0]
    positive, negative = focal_terms(chosen, alpha=alpha, gamma=gamma)
    return total + ((positive - negative) * foreground).sum()


def mask_bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the binary cross-entropy over (M, H, W) logits with soft targets."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


def dice_loss(logits: Tensor, targets: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Sum over M masks of 1 - 2 <p, t> / (|p|^2 + |t|^2 + 2 eps), for (M, H, W) logits."""
    p, t = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = (p * t).sum(1)
    return (1 - 2 * overlap / (p.square().sum(1) + t.square().sum(1) + 2 * eps)).sum()


def rank_loss(logits: Tensor, owners: Tensor) -> Tensor:
    """Sum over pixels of the cross-entropy over kernels: the owner's mask must rank highest.

    Args:
        logits: (B, N, H, W).
        owners: (B, H, W) index of the kernel that owns a pixel, -1 for none (counts 0).
    """
    return F.cross_entropy(logits, owners, ignore_index=-1, reduction="sum")


def paint_owners(masks: Tensor, image: Tensor, values: Tensor, num_images: int) -> Tensor:
    """Label maps from overlapping masks: where several cover a pixel, the highest value wins.

    Args:
        masks: (M, H, W); a pixel is covered where a mask is above 0.
        image: (M,) index of the image that a mask belongs to.
        values: (M,) non-negative label of each mask.
        num_images: B.

    Returns:
        (B, H, W) int64, -1 where nothing covers.
    """
    painted = torch.where(masks > 0, values[:, None, None], -1)
    owners = painted.new_full((num_images, *masks.shape[1:]), -1)
    index = image[:, None, None].expand_as(painted)
    return owners.scatter_reduce_(0, index, painted, reduce="amax")


def world_mean_divisors(counts: Tensor) -> Tensor:
    """Counts summed over all processes, at least 1, divided by the number of processes.

    A local sum divided by this, averaged over the processes (as DistributedDataParallel does with
    gradients), is the sum over all divided by the count of all.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return counts.clamp(min=1)
    dist.all_reduce(counts)
    return counts.clamp(min=1) / dist.get_world_size()
