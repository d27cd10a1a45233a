"""Losses of enlarged masks that never exist as a whole.

A loss at twice the resolution of the masks needs four times their memory, and autograd keeps
several such maps for each round. Here a part of the masks is enlarged, its losses and their
gradients are computed in one go, and the gradients are taken back to the masks' own resolution:
the same sums, and all that stays for the backward pass is one small map for each loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from knet.accel.bilinear import Enlargement
from knet.modeling.layers import at_least_float32

_PART = 2**20  # numbers in a part: a few MB, for the caches


def chunks(rows: int, row_size: int) -> Iterator[slice]:
    """Slices that cover `rows` rows of `row_size` numbers each, in order, a part at a time."""
    step = max(1, _PART // max(1, row_size))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class Part(NamedTuple):
    """Some of the maps (M, ..., h, w), enlarged to P pixels.

    Attributes:
        maps: of the M.
        lines: of the h.
        enlargement: orders the pixels.
    """

    maps: slice
    lines: slice
    enlargement: Enlargement

    def arrange(self, values: Tensor) -> Tensor:
        """(m, ..., H, W) of these maps -> (m, ..., P), in the order of the pixels."""
        return self.enlargement.arrange(values, self.lines)


# (x, part, wanted) -> each loss's sum over the enlarged pixels x (m, ..., P) and, if wanted, its
# gradient with respect to x. The terms leave x as it is: it may be the maps themselves.
Terms = Callable[[Tensor, Part, bool], Iterable[tuple[Tensor, Tensor | None]]]


class _EnlargedSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, size: Sequence[int], terms: Terms, count: int, whole: bool
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        enlargement = Enlargement(maps.shape[-2:], size)
        if enlargement.doubles:  # whose phases are read and written map by map
            maps = maps.contiguous()
        # neighbouring parts share lines of the maps, so gradients add up
        gradients = [torch.zeros_like(maps) for _ in range(count)] if wanted else []
        total = maps.new_zeros(count)
        for part in _parts(maps, enlargement, whole):
            sums = []
            x = enlargement.values(maps[part.maps], part.lines)
            for i, (value, gradient) in enumerate(terms(x, part, wanted)):
                sums.append(value)
                if wanted:
                    assert gradient is not None
                    enlargement.add_transposed(gradient, part.lines, gradients[i][part.maps])
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


def _parts(maps: Tensor, enlargement: Enlargement, whole: bool) -> Iterator[Part]:
    (height, _), (rows, columns) = enlargement.small, enlargement.large
    if not whole:
        for part in chunks(len(maps), rows * columns):
            yield Part(part, enlargement.all_lines, enlargement)
        return
    image_size = maps[:1, ..., 0, 0].numel() * rows * columns
    for images in chunks(len(maps), image_size):
        lines = [enlargement.all_lines]
        if enlargement.by_lines:
            line_size = (images.stop - images.start) * image_size // height
            lines = list(chunks(height, line_size))
        for some in lines:
            yield Part(images, some, enlargement)


def enlarged_sums(
    maps: Tensor, size: Sequence[int], terms: Terms, *, count: int = 1, whole: bool = False
) -> Tensor:
    """Sums of losses over bilinearly enlarged maps, with gradients.

    Args:
        maps: (M, ..., h, w) logits; M or the dimensions between may be 0.
        size: (H, W) to enlarge to.
        terms: the losses of a part of the maps, and their gradients.
        count: the number of losses that `terms` gives.
        whole: the M are images with many maps each, and a loss looks at all maps of a pixel: some
            images, or one and some of its lines, at a time.

    Returns:
        (count,) float32 (float64 of float64 maps).
    """
    return _EnlargedSums.apply(at_least_float32(maps), tuple(size), terms, count, whole)
