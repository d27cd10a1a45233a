"""Elementary losses, each a plain sum; the criterion divides by world-wide counts.

All work on logits in float32. Those of masks come as terms for `enlarged_sums`: value and
gradient together, since the masks are enlarged only for the moment of their loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from knet.training.chunks import chunks
from knet.training.enlarged import Part, Terms


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


def pixel_focal_loss(labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Terms:
    """Sum of the sigmoid focal loss over classes and pixels, for (B, K, H, W) logits.

    Every logit is counted as a negative, then the one labelled class of each foreground pixel is
    corrected: no one-hot map is built.

    Args:
        labels: (B, H, W) class index; K means background.
    """

    def terms(x: Tensor, part: Part, wanted: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
        num_classes = x.shape[1]
        index = part.arrange(labels[part.maps])[:, None]
        foreground = index < num_classes
        index = index.clamp(max=num_classes - 1)
        chosen = x.gather(1, index)
        positive, negative = focal_terms(chosen, alpha=alpha, gamma=gamma)
        p, plus = x.sigmoid(), F.softplus(x)
        scaled = p.pow(gamma).mul_(1 - alpha)
        value = torch.dot(scaled.flatten(), plus.flatten())
        value = value + ((positive - negative) * foreground).sum()
        gradient = None
        if wanted:
            # d negative / dx = (1-alpha) p^gamma (gamma (1-p) softplus(x) + p), and its mirror
            gradient = scaled.mul_(plus.mul_(1 - p).mul_(gamma).add_(p))
            q = chosen.sigmoid()
            rest = 1 - q
            correction = -alpha * rest.pow(gamma) * (gamma * q * F.softplus(-chosen) + rest)
            correction -= (1 - alpha) * q.pow(gamma) * (gamma * rest * F.softplus(chosen) + q)
            gradient.scatter_add_(1, index, correction * foreground)
        yield value, gradient

    return terms


def mask_losses(targets: Callable[[slice], Tensor], *, eps: float = 1e-3) -> Terms:
    """Binary cross-entropy and dice loss of (M, H, W) logits: two sums.

    The dice loss of a mask is 1 - 2 <p, t> / (|p|^2 + |t|^2 + 2 eps).

    Args:
        targets: gives the soft targets (m, H, W) of a part of the masks.
    """

    def terms(x: Tensor, part: Part, wanted: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
        t = part.arrange(targets(part.maps)).to(x.dtype)
        p = x.sigmoid()
        cross_entropy = F.softplus(x).addcmul_(x, t, value=-1)
        yield cross_entropy.sum(), p - t if wanted else None

        overlap = torch.linalg.vecdot(p, t)
        size = torch.linalg.vecdot(p, p) + torch.linalg.vecdot(t, t) + 2 * eps
        gradient = None
        if wanted:
            of_p = (4 * overlap / size.square())[:, None]
            gradient = (p * of_p).addcmul_(t, (2 / size)[:, None], value=-1)
            gradient = torch.ops.aten.sigmoid_backward(gradient, p)
        yield (1 - 2 * overlap / size).sum(), gradient

    return terms


def owner_loss(owners: Tensor) -> Terms:
    """Sum over pixels of the cross-entropy over kernels or classes, for (B, N, H, W) logits.

    As rank loss: the mask that owns a pixel must rank highest there (K-Net §3.5).

    Args:
        owners: (B, H, W) index of the owner of a pixel, in [0, N); another value counts 0.
    """

    def terms(x: Tensor, part: Part, wanted: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
        index = part.arrange(owners[part.maps])[:, None]
        counted = (index >= 0) & (index < x.shape[1])
        index = index.clamp(0, max(0, x.shape[1] - 1))
        if not x.shape[1]:
            yield x.sum(), torch.zeros_like(x) if wanted else None
            return
        log_p = x.log_softmax(1)
        value = -torch.where(counted, log_p.gather(1, index), 0).sum()
        gradient = None
        if wanted:
            gradient = log_p.exp_().mul_(counted)
            gradient.scatter_add_(1, index, -counted.to(x.dtype))
        yield value, gradient

    return terms


def paint_owners(masks: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Label map from overlapping masks: where several cover a pixel, the highest value wins.

    Args:
        masks: (G, H, W); a pixel is covered where a mask is above 0.
        rows: (M,) masks to paint.
        values: (M,) non-negative label of each.

    Returns:
        (H, W) int64, -1 where nothing covers.
    """
    height, width = masks.shape[1:]
    owners = torch.full((height, width), -1, dtype=torch.int32, device=masks.device)
    values = values.to(torch.int32)
    for part in chunks(len(rows), height * width, masks.device):
        painted = torch.where(masks[rows[part]] > 0, values[part, None, None], -1)
        owners = torch.maximum(owners, painted.amax(0))
    return owners.long()


def world_mean_divisors(counts: Tensor) -> Tensor:
    """Counts summed over all processes, at least 1, divided by the number of processes.

    A local sum divided by this, averaged over the processes (as DistributedDataParallel does with
    gradients), is the sum over all divided by the count of all.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return counts.clamp(min=1)
    dist.all_reduce(counts)
    return counts.clamp(min=1) / dist.get_world_size()
