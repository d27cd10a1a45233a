"""A neck that fuses pyramid levels both ways with learned weights: BiFPN.

Not part of the published model. EfficientDet (Tan et al., CVPR 2020, §3): every layer passes
through the levels from coarse to fine and back; each node adds two or three maps by weights of its
own. Among the pixel decoders that Mask2Former compares (Cheng et al., CVPR 2022, §4.3) it stands at
43.5 AP, between FPN at 41.5 and deformable attention, which needs an operator of its own, at 43.7.

Effect on short trainings (docs/ABLATION.md): scenes -5.6 PQ, nuclei -2.0 AP, photos -1.5 PQ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knet.modeling.layers import ConvNormReLU, NormFactory, group_norm
from knet.modeling.neck import PyramidNeck


class FusionNode(nn.Module):
    """A weighted sum of maps, then a depthwise-separable 3x3 convolution (EfficientDet §3.3).

    Fast normalised fusion: the weights are at least 0, and are divided by their sum.

    Args:
        dim: width C.
        num_inputs: maps to add.
        norm: makes the normalisation layer.
    """

    def __init__(self, dim: int, *, num_inputs: int, norm: NormFactory) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_inputs))
        self.depthwise = _depthwise(dim)
        self.pointwise = ConvNormReLU(dim, dim, kernel_size=1, norm=norm)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """As many maps (B, C, H, W) as there are weights -> (B, C, H, W)."""
        weights = torch.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        fused = maps[0] * weights[0]
        for i, x in enumerate(maps[1:], start=1):
            fused = fused + x * weights[i]
        return self.pointwise(self.depthwise(fused))


class FusionLayer(nn.Module):
    """Once from the coarsest level to the finest and back (EfficientDet §3.2, fig. 2d).

    Args:
        dim: width C of all maps.
        num_levels: at least two.
        num_outputs: levels to give, finest first; coarser ones only pass on what they have.
        norm: of every node.
    """

    def __init__(self, dim: int, *, num_levels: int, num_outputs: int, norm: NormFactory) -> None:
        super().__init__()
        last = num_levels - 1
        # of all levels but the outer ones, finest first: on the way to the finest
        self.down = nn.ModuleList(FusionNode(dim, num_inputs=2, norm=norm) for _ in range(1, last))
        # of all levels, finest first: on the way back
        self.up = nn.ModuleList(
            FusionNode(dim, num_inputs=3 if 0 < i < last else 2, norm=norm)
            for i in range(num_outputs)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, H_i, W_i), finest first, each half as large as before -> the same, fused."""
        on_the_way = [maps[-1]]
        for node, x in zip(list(self.down)[::-1], maps[-2:0:-1]):
            on_the_way.insert(0, node([x, _doubled(on_the_way[0])]))
        outputs: list[Tensor] = []
        for i, node in enumerate(self.up):
            if i == 0:
                inputs = [maps[0], _doubled(on_the_way[0])]
            elif i < len(maps) - 1:
                inputs = [maps[i], on_the_way[i - 1], _halved(outputs[-1])]
            else:
                inputs = [maps[i], _halved(outputs[-1])]
            outputs.append(node(inputs))
        return outputs


def _depthwise(dim: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, stride=stride, padding=1, groups=dim, bias=False)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2, padding=1)


class BiFPNNeck(PyramidNeck):
    """Fuses pyramid levels in both directions, several times.

    Every level is brought to C channels. One that is finer than the masks is also brought to their
    stride, and flows in once: layers at its size would take most of the time. What the last layer
    makes of the level to keep feeds the two 1x1 blocks of the published neck.

    Args:
        in_channels: width of each level, finest first; at least two levels.
        hidden_dim: width C of the outputs.
        num_layers: how often the levels from the one to keep on are gone through, if there are two.
        norm_groups: of every GroupNorm.
        conv_std: standard deviation of the initial weights, but for depthwise convolutions, which
            keep the scale of what they convolve.
        mask_level: the level whose stride the outputs have, 0 or 1.
        round_levels: levels that are given out besides, as the last layer makes them.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        hidden_dim: int = 256,
        num_layers: int = 2,
        norm_groups: int = 32,
        conv_std: float = 0.01,
        mask_level: int = 1,
        round_levels: Sequence[int] = (),
    ) -> None:
        super().__init__(mask_level=mask_level, round_levels=round_levels)
        norm, num_levels = group_norm(norm_groups), len(in_channels) - mask_level
        self.laterals = nn.ModuleList(
            ConvNormReLU(width, hidden_dim, kernel_size=1, norm=norm) for width in in_channels
        )
        if mask_level:
            self.reduce = _depthwise(in_channels[0], stride=2)
            self.entry = FusionNode(hidden_dim, num_inputs=2, norm=norm)
        wanted = 1 + max(mask_level, *round_levels, 0) - mask_level
        self.layers = nn.ModuleList(
            FusionLayer(
                hidden_dim,
                num_levels=num_levels,
                num_outputs=num_levels if i < num_layers - 1 else wanted,
                norm=norm,
            )
            for i in range(num_layers if num_levels > 1 else 0)
        )
        self._end(in_channels, hidden_dim, norm, conv_std)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d) and conv.groups > 1:
                nn.init.normal_(conv.weight, std=1 / 3)  # of nine weights

    def fuse(self, maps: Sequence[Tensor]) -> tuple[Tensor, Mapping[int, Tensor]]:
        """What the last layer makes of the level to keep, and of all levels that it gives."""
        if self.mask_level:
            maps = [self.reduce(maps[0]), *maps[1:]]
        maps = [lateral(x) for lateral, x in zip(self.laterals, maps)]
        if self.mask_level:
            maps = [self.entry(maps[:2]), *maps[2:]]
        for layer in self.layers:
            maps = layer(maps)
        return maps[0], dict(enumerate(maps, start=self.mask_level))
