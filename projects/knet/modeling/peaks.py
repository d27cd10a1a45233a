"""Thing kernels that start where the image shows an object, in place of learned ones.

Not part of the published model, whose kernels are learned and find their objects in the course of a
long training. Here a heat map of object centres (CenterNet: Zhou et al., "Objects as Points", 2019)
says where kernels start: each begins as a disc around one of its highest peaks, and the rounds do
the rest. No parameter belongs to a kernel, so a model may be trained on crops with few kernels and
applied to large images with many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knet.modeling.layers import ConvNormReLU, NormFactory, at_least_float32
from knet.modeling.positions import PlaceEncoding

# of the bell around an object's centre: its standard deviation as a share of the object's size, and
# the least in cells
_SPREAD, _LEAST_SPREAD = 0.125, 0.6


class PeakKernels(nn.Module):
    """The first thing kernels of every image.

    Effect on short trainings (docs/ABLATION.md): scenes +4.4 PQ; of leaving them out:
    nuclei -17.2 AP, photos +1.6 PQ.

    Args:
        hidden_dim: width C, even.
        num_kernels: N of an image in training.
        num_test_kernels: the same in inference.
        norm: makes normalisation layers.
    """

    def __init__(
        self, *, hidden_dim: int, num_kernels: int, num_test_kernels: int, norm: NormFactory
    ) -> None:
        super().__init__()
        self.num_kernels = num_kernels
        self.num_test_kernels = num_test_kernels
        self.context = ConvNormReLU(hidden_dim, hidden_dim, kernel_size=3, norm=norm)
        self.heat = nn.Conv2d(hidden_dim, 1, 1)
        self.reshape = nn.Linear(hidden_dim, hidden_dim)
        self.refine = nn.Linear(hidden_dim, hidden_dim)
        self.places = PlaceEncoding(hidden_dim, reach=4.0)

    def init_weights(self, prior: float) -> None:
        """Kernels that are discs, and a heat map of this value everywhere."""
        for layer in (self.reshape, self.refine):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.heat.get_parameter("bias"), -math.log(1 / prior - 1))

    def forward(self, classifying: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps (B, C, H, W) -> kernels (B, N, C), fewer if there are fewer pixels, and heat.

        The heat map is (B, 1, H, W) logits; `features` are what the kernels convolve.
        """
        context = self.context(classifying)
        heat = self.heat(context)
        index = highest_peaks(heat, self.num_kernels if self.training else self.num_test_kernels)
        # out of a table: exported graphs cannot divide by a size that is not fixed
        cells = [torch.arange(n, device=heat.device) + 0.5 for n in heat.shape[-2:]]
        centres = torch.cartesian_prod(*cells)[index]
        # other weights of the place's waves make a larger or a smaller disc
        discs = self.places.kernels(centres) * (1 + self.reshape(_at(context, index)))
        return discs + self.refine(_at(features, index)), heat


def _at(maps: Tensor, index: Tensor) -> Tensor:
    """Columns (B, N, C) of maps (B, C, H, W) at flat indices (B, N)."""
    index = index[:, None].expand(-1, maps.shape[1], -1)
    return maps.flatten(2).gather(2, index).transpose(1, 2)


def highest_peaks(heat: Tensor, count: int) -> Tensor:
    """Flat indices (B, n) of the highest pixels, of those first that no neighbour surpasses.

    Args:
        heat: (B, 1, H, W) logits.
        count: n, less if there are fewer pixels.
    """
    heat = at_least_float32(heat.detach())
    lower = heat < F.max_pool2d(heat, 3, stride=1, padding=1)
    ranking = (heat.sigmoid() - lower.to(heat.dtype)).flatten(1)
    return ranking.topk(min(count, ranking.shape[1]), dim=1).indices


def centre_targets(masks: Tensor, counts: Sequence[int], size: Sequence[int]) -> Tensor:
    """Heat maps (B, h, w) that are 1 at the centre of every object and fall off around it.

    Args:
        masks: (sum of counts, H, W) in [0, 1], image by image, at the heat map's or a finer size.
        counts: objects of each image.
        size: (h, w) of the heat map.
    """
    masks = at_least_float32(masks)
    area = masks.sum((1, 2))
    bells = []
    for axis, length in enumerate(size):
        profile = masks.sum(2 - axis)
        scale = length / masks.shape[1 + axis]
        cells = torch.arange(masks.shape[1 + axis], device=masks.device) + 0.5
        centre = ((profile * cells).sum(1) / area.clamp(min=1e-6) * scale).floor()
        spread = (area.sqrt() * scale * _SPREAD).clamp(min=_LEAST_SPREAD)
        distance = torch.arange(length, device=masks.device) - centre[:, None]
        bells.append((-(distance**2) / (2 * spread[:, None] ** 2)).exp() * (area > 0)[:, None])
    maps = (bells[0][:, :, None] * bells[1][:, None]).split(list(counts))
    return torch.stack([m.amax(0) if len(m) else masks.new_zeros(tuple(size)) for m in maps])


def centre_focal_sum(heat: Tensor, targets: Tensor) -> Tensor:
    """CenterNet's focal loss, eq. 1, summed over places.

    Args:
        heat: logits.
        targets: of the same shape, 1 at centres, less around them.
    """
    p = heat.sigmoid()
    positive = (1 - p).square() * F.softplus(-heat)
    negative = (1 - targets).pow(4) * p.square() * F.softplus(heat)
    return torch.where(targets == 1, positive, negative).sum()
