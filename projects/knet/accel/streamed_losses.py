"""Losses of enlarged masks, a few masks or lines at a time: what a CPU's caches and memory like.

The same sums as `knet.modeling.losses.AllPixels`, whose autograd keeps a dozen maps of the size of
the enlarged masks. Here value and gradient of a part are computed in one go (see `enlarged_sums`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from knet.accel.bilinear import Enlargement
from knet.accel.enlarged_sums import Part, Terms, chunks, enlarged_sums
from knet.modeling.layers import at_least_float32
from knet.modeling.losses import AllPixels, Overlaps, focal_terms


class StreamedPixels(AllPixels):
    """`AllPixels` in parts."""

    def overlaps(self, masks: Tensor, objects: Tensor) -> Overlaps:
        """As of `AllPixels`."""
        masks = at_least_float32(masks)
        enlargement = Enlargement(masks.shape[-2:], objects.shape[-2:])
        everywhere = enlargement.all_lines
        t = enlargement.arrange(objects, everywhere).to(masks.dtype)
        inner = t.new_empty(*masks.shape[:2], t.shape[1])
        area, square = inner.new_empty(2, *masks.shape[:2])
        for b, image in enumerate(masks):
            for part in chunks(len(image), t.shape[2]):
                p = enlargement.values(image[part], everywhere).sigmoid()
                torch.mm(p, t[b].T, out=inner[b, part])
                torch.sum(p, 1, out=area[b, part])
                square[b, part] = torch.linalg.vecdot(p, p)
        return Overlaps(inner, area, square, t.sum(2), torch.linalg.vecdot(t, t), t.shape[2])

    def mask_sums(self, masks: Tensor, objects: Tensor, rows: Tensor) -> Tensor:
        """As of `AllPixels`."""
        terms = mask_terms(lambda part: objects[rows[part]])
        return enlarged_sums(masks, objects.shape[-2:], terms, count=2)

    def owner_sum(self, masks: Tensor, owners: Tensor) -> Tensor:
        """As of `AllPixels`."""
        return enlarged_sums(masks, owners.shape[-2:], owner_terms(owners), whole=True)[0]

    def class_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As of `AllPixels`."""
        return enlarged_sums(logits, labels.shape[-2:], class_terms(labels), whole=True)[0]


def class_terms(labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Terms:
    """`pixel_focal_sum` of (B, K, H, W) logits.

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


def mask_terms(targets: Callable[[slice], Tensor], *, eps: float = 1e-3) -> Terms:
    """`cross_entropy_and_dice` of (M, H, W) logits.

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


def owner_terms(owners: Tensor) -> Terms:
    """`owner_sum` of (B, N, H, W) logits.

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
