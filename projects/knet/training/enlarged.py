"""Losses of enlarged masks that never exist as a whole.

A loss at twice the resolution of the masks needs four times their memory, and autograd keeps
several such maps for each round. Here a part of the masks is enlarged, its losses and their
gradients are computed in one go, and the gradients are taken back to the masks' own resolution:
the same sums, and all that stays for the backward pass is one small map for each loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from knet.training.chunks import chunks

# (x, part, wanted) -> each loss's sum over the rows x = enlarged[part] and, if wanted, its gradient
# with respect to x. The terms own x: the last one may overwrite it.
Terms = Callable[[Tensor, slice, bool], Iterable[tuple[Tensor, Tensor | None]]]


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear (..., h, w) -> (..., H, W), float32; as `align_corners=False`."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps.float()
    if not maps.numel():  # interpolate refuses it
        return maps.new_zeros((*maps.shape[:-2], *size), dtype=torch.float32)
    flat = maps.float().reshape(1, -1, *maps.shape[-2:])
    large = F.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False)
    return large.view(*maps.shape[:-2], *size)


def _reduce(gradient: Tensor, size: Sequence[int]) -> Tensor:
    """The transpose of `enlarge`: gradients (..., H, W) -> (..., h, w)."""
    if tuple(gradient.shape[-2:]) == tuple(size):
        return gradient
    flat = gradient.reshape(1, -1, *gradient.shape[-2:])
    small = torch.ops.aten.upsample_bilinear2d_backward(
        flat, list(gradient.shape[-2:]), [*flat.shape[:2], *size], False, None, None
    )
    return small.view(*gradient.shape[:-2], *size)


class _EnlargedSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, size: Sequence[int], terms: Terms, count: int, whole: bool
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        # the parts cover all rows
        gradients = [torch.empty_like(maps) for _ in range(count)] if wanted else []
        total = maps.new_zeros(count)
        for part in _parts(maps, size, whole):
            sums = []
            for i, (value, gradient) in enumerate(terms(enlarge(maps[part], size), part, wanted)):
                sums.append(value)
                if wanted:
                    assert gradient is not None
                    gradients[i][part] = _reduce(gradient, maps.shape[-2:])
            total += torch.stack(sums)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradients = ctx.saved_tensors
        total = gradients[0] * upstream[0]
        for gradient, factor in zip(gradients[1:], upstream[1:]):
            total.addcmul_(gradient, factor)
        return total, None, None, None, None


def _parts(maps: Tensor, size: Sequence[int], whole: bool) -> Iterator[slice]:
    if whole:
        return (slice(i, i + 1) for i in range(len(maps)))
    return chunks(len(maps), size[0] * size[1], maps.device)


def enlarged_sums(
    maps: Tensor, size: Sequence[int], terms: Terms, *, count: int = 1, whole: bool = False
) -> Tensor:
    """Sums of losses over bilinearly enlarged maps, with gradients.

    Args:
        maps: (M, ..., h, w) logits; M or the dimensions between may be 0.
        size: (H, W) to enlarge to.
        terms: the losses of a part of the M rows, and their gradients.
        count: the number of losses that `terms` gives.
        whole: one row at a time, for rows that are images with many maps each.

    Returns:
        (count,) float32.
    """
    return _EnlargedSums.apply(maps.float(), tuple(size), terms, count, whole)
