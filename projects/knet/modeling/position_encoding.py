"""Sine encoding of pixel positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinePositionEncoding(nn.Module):
    """Normalised sine encoding; the first half of the channels encodes y, the second x.

    Coordinates run from 1 to n, are divided by n + 1e-6 and scaled to 2 pi. Padding counts as
    part of the map, as in the published model.

    Args:
        num_channels: of the encoding; divisible by 4.
        temperature: of the geometric series of wavelengths.
    """

    def __init__(self, num_channels: int, *, temperature: float = 10000.0) -> None:
        super().__init__()
        if num_channels % 4:
            raise ValueError(
                f"the sine encoding needs a multiple of 4 channels, got {num_channels}"
            )
        self.num_channels = num_channels
        self.temperature = temperature

    def _encode(self, length: int, device: torch.device) -> Tensor:
        half = self.num_channels // 2
        coordinate = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        coordinate = coordinate / (length + 1e-6) * (2 * math.pi)
        channel = torch.arange(half, dtype=torch.float32, device=device)
        wavelength = self.temperature ** (2 * (channel // 2) / half)
        angle = coordinate / wavelength[:, None]
        # even channels carry the sine, odd ones the cosine of the same angle
        return torch.where((channel % 2 == 0)[:, None], angle.sin(), angle.cos())

    def forward(self, x: Tensor) -> Tensor:
        """Encoding (num_channels, H, W) for a feature map x of shape (B, C, H, W)."""
        height, width = x.shape[-2:]
        y = self._encode(height, x.device)[:, :, None].expand(-1, -1, width)
        x_ = self._encode(width, x.device)[:, None, :].expand(-1, height, -1)
        return torch.cat([y, x_])
