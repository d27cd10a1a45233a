"""3x3 convolutions of stride 2 whose weights get their gradient at the rate of matrix products.

CPU libraries reach a third of it there. Forward pass and gradient of the input are theirs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

# numbers gathered at a time: 8 MB, for the caches
_BAND = 2**21


class _StridedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, stride=2, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = conv2d_input(x.shape, weight, upstream, stride=2, padding=1)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(x, upstream)
        if ctx.needs_input_grad[2]:
            of_bias = upstream.sum((0, 2, 3))
        return of_x, of_weight, of_bias


def convolve_3x3_strided(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.conv2d(x, weight, bias, stride=2, padding=1)`.

    Args:
        x: (B, C, H, W).
        weight: (K, C, 3, 3).
        bias: (K,) or None.

    Returns:
        (B, K, ceil(H / 2), ceil(W / 2)).
    """
    return _StridedConvolution.apply(x, weight, bias)


def _weight_gradient(x: Tensor, upstream: Tensor) -> Tensor:
    """(K, C, 3, 3): for each tap, the pixels that it saw times the gradients that they led to."""
    x, upstream = (t.permute(0, 2, 3, 1).contiguous() for t in (x, upstream))
    batch, height, width, outputs = upstream.shape
    inputs = x.shape[-1]
    total = x.new_zeros((9, inputs, outputs))
    step = max(1, _BAND // (9 * width * inputs))
    for image in range(batch):
        for start in range(0, height, step):
            stop = min(start + step, height)
            # lines 2 start - 1 to 2 stop - 1 of the image, zeros around it
            first, last = max(2 * start - 1, 0), min(2 * stop, x.shape[1])
            lines = x.new_zeros((2 * (stop - start) + 1, 2 * width + 1, inputs))
            top = first - (2 * start - 1)
            lines[top : top + last - first, 1 : 1 + x.shape[2]] = x[image, first:last]
            line, column, _ = lines.stride()
            taps = lines.as_strided(
                (3, 3, stop - start, width, inputs), (line, column, 2 * line, 2 * column, 1)
            ).reshape(9, -1, inputs)
            gradients = upstream[image, start:stop].reshape(1, -1, outputs).expand(9, -1, -1)
            total.baddbmm_(taps.transpose(1, 2), gradients)
    return total.view(3, 3, inputs, outputs).permute(3, 2, 0, 1)
