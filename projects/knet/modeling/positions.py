"""Encodings of where a pixel is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# of the first masks, as logits: at a kernel's place, and how far from it the mask ends, as a share
# of the fall from there to places far away
_PEAK, _EDGE = 5.0, 0.5


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


class PlaceEncoding(nn.Module):
    """Features that tell places apart, and kernels that each start on a place of their own.

    Not part of the published model, whose kernels are drawn at random: only in the course of a
    long training does each learn to keep to some part of the image. With hundreds of small objects
    and little training that takes most of the time. Here the features also carry the place of each
    pixel, and a kernel starts as a detector of its own place: the first masks are small discs that
    together cover the image.

    The encoding holds sines and cosines of plane waves (random Fourier features, but not random).

    The scalar product of the encodings of two places falls with their distance like a bell curve,
    since the wave vectors follow a normal distribution; they are spread evenly rather than drawn.

    Effect on short trainings (docs/ABLATION.md): scenes -0.8 PQ; in place of kernels at peaks:
    nuclei -5.6 AP, photos +2.7 PQ.

    Args:
        num_channels: C, even and at least 4: sine and cosine of each wave, and a constant.
        bandwidth: standard deviation of the wave vectors, in waves across the image. With 4, the
            first masks have a tenth of the image's sides as diameter.
        gain: factor of the encoding. With a higher one kernels move faster at the same rate.
        reach: counts places in pixels of the map, not in shares of the image: up to this distance
            from its place a kernel's first mask extends, about. Other places fade out more slowly
            than with a bell curve, so that kernels can learn to reach further; `bandwidth` is of
            no effect.
    """

    waves: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        bandwidth: float = 4.0,
        gain: float = 2.0,
        reach: float | None = None,
    ) -> None:
        super().__init__()
        if num_channels < 4 or num_channels % 2:
            raise ValueError(
                f"MODEL.KNET.HIDDEN_DIM is {num_channels}; MODEL.KNET.KERNEL_PLACES needs an even "
                "number of channels, at least 4"
            )
        self.gain = gain
        self.in_pixels = reach is not None
        count = num_channels // 2 - 1
        share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        if reach is None:
            radius = bandwidth * (-2 * (1 - share).log()).sqrt()
        else:  # Student's distribution of three degrees of freedom; nothing finer than the pixels
            radius = (3 * ((1 - share) ** (-2 / 3) - 1)).sqrt() / (2 * math.pi * reach)
            radius = radius.clamp(max=0.45)
        angle = torch.arange(count, dtype=torch.float64) * math.pi * (3 - math.sqrt(5))
        waves = radius[:, None] * torch.stack([angle.sin(), angle.cos()], dim=1)
        self.register_buffer("waves", waves.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Encoding (1, C, H, W) of the pixels of maps x (B, C, H, W)."""
        axes = [
            (torch.arange(size, dtype=torch.float32, device=x.device) + 0.5)
            / (1 if self.in_pixels else size)
            for size in x.shape[-2:]
        ]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        encoded = self._encode(places, constant=1.0)
        return (self.gain * encoded).permute(2, 0, 1)[None].to(x.dtype)

    def kernels(self, places: Tensor) -> Tensor:
        """(..., C) kernels whose masks, by this encoding alone, are discs at places (..., 2)."""
        height = len(self.waves)  # of the bell curve
        kernels = self._encode(places, constant=-_EDGE * height)
        return kernels * _PEAK / ((1 - _EDGE) * height * self.gain)

    def _encode(self, places: Tensor, *, constant: float) -> Tensor:
        # not a matrix product, which autocast would round: phases span many turns
        phase = 2 * math.pi * (places[..., None, :] * self.waves).sum(-1)
        rest = torch.zeros_like(phase[..., :2])
        rest[..., 0] = constant
        return torch.cat([phase.sin(), phase.cos(), rest], dim=-1)


def spread_places(count: int) -> Tensor:
    """(count, 2) places y, x in [0, 1), spread evenly: the golden-ratio sequence of the plane."""
    golden = 1.3247179572447460  # solves x^3 = x + 1
    steps = torch.tensor([1 / golden, 1 / golden**2], dtype=torch.float64)
    index = torch.arange(1, count + 1, dtype=torch.float64)
    return ((0.5 + index[:, None] * steps) % 1).float()
