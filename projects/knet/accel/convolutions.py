"""Lets the 3x3 convolutions of a model compute in faster ways where they pay.

TorchScript and `torch.fx` know plain convolutions only: call `use_usual_convolutions` before.
"""

from __future__ import annotations

from typing import Any

import detectron2.layers as d2
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from knet.accel import strided, winograd


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        if stride == 1:
            return winograd.convolve(x, weight, bias)
        return F.conv2d(x, weight, bias, stride=2, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0] and ctx.stride == 1:
            of_x = winograd.convolve(upstream, weight.flip(2, 3).transpose(0, 1), None)
        elif ctx.needs_input_grad[0]:
            of_x = conv2d_input(x.shape, weight, upstream, stride=2, padding=1)
        if ctx.needs_input_grad[1]:
            method = winograd if ctx.stride == 1 else strided
            of_weight = method.weight_gradient(x, upstream)
        if ctx.needs_input_grad[2]:
            of_bias = upstream.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None


def convolve_3x3(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1) -> Tensor:
    """`F.conv2d(x, weight, bias, stride=stride, padding=1)`, up to rounding; differentiable once.

    Args:
        x: (B, C, H, W) float32 on a CPU.
        weight: (K, C, 3, 3).
        bias: (K,) or None.
        stride: 1 or 2.

    Returns:
        (B, K, ceil(H / stride), ceil(W / stride)); channels last with stride 1.
    """
    return _Convolution.apply(x, weight, bias, stride)


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor | None:
    """What a convolution of a 3x3 kernel gives, or None where the usual way is as fast."""
    trains = torch.is_grad_enabled() and conv.weight.requires_grad
    if not winograd.pays(x, conv.weight) or (conv.stride != (1, 1) and not trains):
        return None
    return convolve_3x3(x, conv.weight, conv.bias, stride=conv.stride[0])


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d` of stride 1 or 2, the faster way."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, ceil(H / stride), ceil(W / stride))."""
        x = _convolve(self, input)
        return super().forward(input) if x is None else x


class Detectron2Conv3x3(d2.Conv2d):
    """The same for Detectron2's `Conv2d`, which goes on with a norm and an activation."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, ceil(H / stride), ceil(W / stride))."""
        convolved = _convolve(self, x)
        if convolved is None:
            return super().forward(x)
        if self.norm is not None:
            convolved = self.norm(convolved)
        return convolved if self.activation is None else self.activation(convolved)


_FAST: dict[type, type] = {nn.Conv2d: Conv3x3, d2.Conv2d: Detectron2Conv3x3}
_USUAL: dict[type, type] = {fast: usual for usual, fast in _FAST.items()}


def use_fast_convolutions(module: nn.Module) -> None:
    """Change the class of every convolution that has the right form; names and weights stay."""
    for conv in module.modules():
        if type(conv) in _FAST and _fits(conv):
            conv.__class__ = _FAST[type(conv)]


def use_usual_convolutions(module: nn.Module) -> None:
    """Undo `use_fast_convolutions`."""
    for conv in module.modules():
        if type(conv) in _USUAL:
            conv.__class__ = _USUAL[type(conv)]


def _fits(conv: nn.Module) -> bool:
    assert isinstance(conv, nn.Conv2d)
    form = (conv.kernel_size, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return form == ((3, 3), (1, 1), (1, 1), 1, "zeros") and conv.stride in ((1, 1), (2, 2))
