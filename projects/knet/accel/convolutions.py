"""Lets the 3x3 convolutions of a model compute in faster ways where they pay.

TorchScript and `torch.fx` know plain convolutions only: call `use_usual_convolutions` before.
"""

from __future__ import annotations

import detectron2.layers as d2
import torch
from torch import Tensor, nn

from knet.accel.strided import convolve_3x3_strided
from knet.accel.winograd import convolve_3x3, pays


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor | None:
    """What a convolution of a 3x3 kernel gives, or None where the usual way is as fast."""
    if not pays(x, conv.weight):
        return None
    if conv.stride == (1, 1):
        return convolve_3x3(x, conv.weight, conv.bias)
    if torch.is_grad_enabled() and conv.weight.requires_grad:
        return convolve_3x3_strided(x, conv.weight, conv.bias)
    return None


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
