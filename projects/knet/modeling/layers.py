"""What necks, kernel heads and pixel decoders are built from; where mixed precision ends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# makes the normalisation layer of a number of channels
NormFactory = Callable[[int], nn.Module]


def group_norm(groups: int) -> NormFactory:
    """GroupNorm of a fixed number of groups, which must divide the channels."""
    return lambda channels: nn.GroupNorm(groups, channels)


class ConvNormReLU(nn.Module):
    """Convolution without bias, normalisation, ReLU.

    Args:
        in_channels, out_channels: widths.
        kernel_size: odd; padding keeps the size at stride 1.
        norm: makes the normalisation layer.
        stride, dilation: of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        norm: NormFactory,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=False,
        )
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        return torch.relu(self.norm(self.conv(x)))


def init_convs(module: nn.Module, std: float) -> None:
    """Draw every convolution weight of `module` from N(0, std); biases become zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def at_least_float32(x: Tensor) -> Tensor:
    """Half types, integers and booleans as float32; float32 and float64 as they are.

    For sums over thousands of pixels, losses and costs, which overflow or round away in half
    types. A model in float64 stays so throughout: that tells rounding from a wrong formula.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, copied without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
