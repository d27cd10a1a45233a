"""Losses of enlarged masks that never exist as a whole.

A loss at twice the resolution of the masks needs four times their memory, and autograd keeps
several such maps for each round. Here a part of the masks is enlarged, its losses and their
gradients are computed in one go, and the gradients are taken back to the masks' own resolution:
the same sums, and all that stays for the backward pass is one small map for each loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from knet.training.chunks import chunks


class Part(NamedTuple):
    """Some of the maps (M, ..., H, W), enlarged.

    Attributes:
        maps: of the M.
        lines: of the H.
    """

    maps: slice
    lines: slice


# (x, part, wanted) -> each loss's sum over x = enlarged[part.maps, ..., part.lines, :] and, if
# wanted, its gradient with respect to x. The terms own x: the last one may overwrite it.
Terms = Callable[[Tensor, Part, bool], Iterable[tuple[Tensor, Optional[Tensor]]]]


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
        # neighbouring parts share lines of the maps, so gradients add up
        gradients = [torch.zeros_like(maps) for _ in range(count)] if wanted else []
        total = maps.new_zeros(count)
        for part in _parts(maps, size, whole):
            source, inside = _source(part.lines, maps.shape[-2], size[0])
            small = maps[part.maps][..., source, :]
            height = (source.stop - source.start) * size[0] // maps.shape[-2]
            x = enlarge(small, (height, size[1]))[..., inside, :]
            sums = []
            for i, (value, gradient) in enumerate(terms(x, part, wanted)):
                sums.append(value)
                if wanted:
                    assert gradient is not None
                    around = (0, 0, inside.start, height - inside.stop)
                    gradient = F.pad(gradient, around) if any(around) else gradient
                    gradients[i][part.maps][..., source, :] += _reduce(gradient, small.shape[-2:])
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


def _parts(maps: Tensor, size: Sequence[int], whole: bool) -> Iterator[Part]:
    height, width = size
    if not whole:
        for part in chunks(len(maps), height * width, maps.device):
            yield Part(part, slice(0, height))
        return
    # lines of the enlarged maps can be told apart where each line of the maps becomes some of them
    divisible = height % max(1, maps.shape[-2]) == 0
    row_size = max(1, maps[:1, ..., 0, 0].numel()) * width
    for i in range(len(maps)):
        if not divisible:
            yield Part(slice(i, i + 1), slice(0, height))
            continue
        for lines in chunks(height, row_size, maps.device):
            yield Part(slice(i, i + 1), lines)


def _source(lines: slice, height: int, enlarged: int) -> tuple[slice, slice]:
    """Lines of a map that enlarged `lines` depend on, and where those are among the enlarged."""
    if lines == slice(0, enlarged):
        return slice(0, height), lines
    factor = enlarged // height
    first = max(0, lines.start // factor - 1)
    last = min(height, -(-lines.stop // factor) + 1)
    if factor == 1:
        first, last = lines.start, lines.stop
    return slice(first, last), slice(lines.start - first * factor, lines.stop - first * factor)


def enlarged_sums(
    maps: Tensor, size: Sequence[int], terms: Terms, *, count: int = 1, whole: bool = False
) -> Tensor:
    """Sums of losses over bilinearly enlarged maps, with gradients.

    Args:
        maps: (M, ..., h, w) logits; M or the dimensions between may be 0.
        size: (H, W) to enlarge to.
        terms: the losses of a part of the maps, and their gradients.
        count: the number of losses that `terms` gives.
        whole: rows are images with many maps each, and a loss looks at all maps of a pixel: one
            image and some lines at a time.

    Returns:
        (count,) float32.
    """
    return _EnlargedSums.apply(maps.float(), tuple(size), terms, count, whole)
