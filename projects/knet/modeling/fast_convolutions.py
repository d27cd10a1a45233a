"""Lets the 3x3 convolutions of a model go by Winograd's method where that pays."""

from __future__ import annotations

import detectron2.layers as d2
from torch import Tensor, nn

from knet.modeling.winograd import convolve_3x3, pays


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d` of stride 1 that keeps the size, by Winograd's method where that pays."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        if not pays(input, self.weight):
            return super().forward(input)
        return convolve_3x3(input, self.weight, self.bias)


class Detectron2Conv3x3(d2.Conv2d):
    """The same for Detectron2's `Conv2d`, which goes on with a norm and an activation."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        if not pays(x, self.weight):
            return super().forward(x)
        x = convolve_3x3(x, self.weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


_FAST = {nn.Conv2d: Conv3x3, d2.Conv2d: Detectron2Conv3x3}
_DIRECT = {fast: direct for direct, fast in _FAST.items()}


def use_winograd(module: nn.Module) -> None:
    """Change the class of every convolution that has the right form; names and weights stay."""
    for conv in module.modules():
        if type(conv) in _FAST and _fits(conv):
            conv.__class__ = _FAST[type(conv)]


def use_direct_sums(module: nn.Module) -> None:
    """Undo `use_winograd`."""
    for conv in module.modules():
        if type(conv) in _DIRECT:
            conv.__class__ = _DIRECT[type(conv)]


def _fits(conv: nn.Module) -> bool:
    assert isinstance(conv, nn.Conv2d)
    form = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return (
        form == ((3, 3), (1, 1), (1, 1), (1, 1))
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )
