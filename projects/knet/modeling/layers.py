"""The convolution block that neck and kernel head are built from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNormReLU(nn.Module):
    """Convolution without bias, GroupNorm, ReLU.

    Args:
        in_channels, out_channels: widths.
        kernel_size: odd; padding keeps the size at stride 1.
        norm_groups: groups of the GroupNorm; must divide `out_channels`.
        stride: of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        norm_groups: int,
        stride: int = 1,
    ) -> None:
        super().__init__()
        if out_channels % norm_groups:
            raise ValueError(
                f"{norm_groups} norm groups do not divide {out_channels} channels: "
                "change MODEL.KNET.NORM_GROUPS or MODEL.KNET.HIDDEN_DIM"
            )
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            bias=False,
        )
        self.norm = nn.GroupNorm(norm_groups, out_channels)

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
