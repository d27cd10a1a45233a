"""Necks: all pyramid levels fused into two maps at one level's stride; the published one."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from knet.modeling.layers import ConvNormReLU, NormFactory, group_norm, init_convs
from knet.modeling.positions import SinePositionEncoding

__all__ = ["SemanticFPNNeck"]


class PyramidNeck(nn.Module, abc.ABC):
    """What necks have in common: a position encoding before they fuse, two 1x1 blocks behind.

    A subclass makes what fuses the levels, then calls `_end`, in which order parameters stand.

    Args:
        mask_level: the level whose stride the outputs have, 0 or 1.
        round_levels: levels that are given out besides, for rounds that gather from them; none is
            finer than `mask_level`.
    """

    def __init__(self, *, mask_level: int, round_levels: Sequence[int]) -> None:
        super().__init__()
        if any(index < mask_level for index in round_levels):
            raise ValueError(
                f"rounds gather from levels no finer than the masks' ({mask_level}): not from "
                f"{list(round_levels)}"
            )
        self.mask_level = mask_level
        self.round_levels = tuple(round_levels)

    def _end(
        self, in_channels: Sequence[int], hidden_dim: int, norm: NormFactory, conv_std: float
    ) -> None:
        self.num_levels = len(in_channels)
        self.position_encoding = SinePositionEncoding(in_channels[-1])
        self.localise = ConvNormReLU(hidden_dim, hidden_dim, kernel_size=1, norm=norm)
        self.classify = ConvNormReLU(hidden_dim, hidden_dim, kernel_size=1, norm=norm)
        init_convs(self, conv_std)

    @abc.abstractmethod
    def fuse(self, maps: Sequence[Tensor]) -> tuple[Tensor, Mapping[int, Tensor]]:
        """The fused map, and at least the `round_levels`: (B, C, H_i, W_i) by their numbers."""

    def forward(self, features: Sequence[Tensor]) -> tuple[Any, ...]:
        """Fuse one batch.

        Args:
            features: maps (B, C_i, H_i, W_i), finest first, each half as large as the one before.

        Returns:
            The localising and the classifying map, both (B, C, H, W) of the level to keep; with
            `round_levels` also a list of their maps, (B, C, H_i, W_i).
        """
        if len(features) != self.num_levels:
            raise ValueError(f"expected {self.num_levels} feature maps, got {len(features)}")
        *finer, coarsest = features
        coarsest = coarsest + self.position_encoding(coarsest).to(coarsest.dtype)
        fused, levels = self.fuse([*finer, coarsest])
        outputs = self.localise(fused), self.classify(fused)
        if not self.round_levels:
            return outputs
        return *outputs, [levels[index] for index in self.round_levels]


class SemanticFPNNeck(PyramidNeck):
    """Fuses pyramid levels (K-Net §3.4, after Panoptic FPN's semantic branch).

    One level, as published the second, keeps its stride. A finer one is convolved with stride 2,
    every coarser one convolved and upsampled by 2 until it has that stride; their sum feeds two 1x1
    blocks: one locates objects, the other classifies pixels.

    Args:
        in_channels: width of each level, finest first; at least two levels.
        hidden_dim: width C of the two outputs.
        norm_groups: of every GroupNorm.
        conv_std: standard deviation of the initial convolution weights.
        mask_level: the level whose stride the outputs have, 0 or 1.
        round_levels: levels that are given out besides, each after its first convolution.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        hidden_dim: int = 256,
        norm_groups: int = 32,
        conv_std: float = 0.01,
        mask_level: int = 1,
        round_levels: Sequence[int] = (),
    ) -> None:
        super().__init__(mask_level=mask_level, round_levels=round_levels)
        norm = group_norm(norm_groups)

        def block(width: int, kernel_size: int = 3, stride: int = 1) -> ConvNormReLU:
            return ConvNormReLU(
                width, hidden_dim, kernel_size=kernel_size, stride=stride, norm=norm
            )

        self.levels = nn.ModuleList()
        for index, width in enumerate(in_channels, start=-mask_level):
            if index < 0:
                convs = [block(width, stride=2)]
            else:
                convs = [block(width if i == 0 else hidden_dim) for i in range(index + 1)]
            self.levels.append(nn.ModuleList(convs))
        self._end(in_channels, hidden_dim, norm, conv_std)

    def fuse(self, maps: Sequence[Tensor]) -> tuple[Tensor, Mapping[int, Tensor]]:
        """The sum of all levels, and each level at its own stride, but for a finer one."""
        fused, levels = None, {}
        for number, (level, x) in enumerate(zip(self.levels, maps)):
            index = number - self.mask_level
            for i, conv in enumerate(level.children()):
                x = conv(x)
                if i == 0:
                    levels[number] = x
                if i < index:  # the number of doublings up to the stride to keep
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            fused = x if fused is None else fused + x
        assert fused is not None
        return fused, levels
