"""The semantic-FPN neck: all pyramid levels fused into two maps at one level's stride."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from knet.modeling.layers import ConvNormReLU, group_norm, init_convs
from knet.modeling.positions import SinePositionEncoding


class SemanticFPNNeck(nn.Module):
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
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        hidden_dim: int = 256,
        norm_groups: int = 32,
        conv_std: float = 0.01,
        mask_level: int = 1,
    ) -> None:
        super().__init__()
        norm = group_norm(norm_groups)

        def block(width: int, kernel_size: int = 3, stride: int = 1) -> ConvNormReLU:
            return ConvNormReLU(
                width, hidden_dim, kernel_size=kernel_size, stride=stride, norm=norm
            )

        self.mask_level = mask_level
        self.levels = nn.ModuleList()
        for index, width in enumerate(in_channels, start=-mask_level):
            if index < 0:
                convs = [block(width, stride=2)]
            else:
                convs = [block(width if i == 0 else hidden_dim) for i in range(index + 1)]
            self.levels.append(nn.ModuleList(convs))
        self.position_encoding = SinePositionEncoding(in_channels[-1])
        self.localise = block(hidden_dim, kernel_size=1)
        self.classify = block(hidden_dim, kernel_size=1)
        init_convs(self, conv_std)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Fuse one batch.

        Args:
            features: maps (B, C_i, H_i, W_i), finest first, each half as large as the one before.

        Returns:
            The localising and the classifying map, both (B, C, H, W) of the level to keep.
        """
        if len(features) != len(self.levels):
            raise ValueError(f"expected {len(self.levels)} feature maps, got {len(features)}")
        *finer, coarsest = features
        coarsest = coarsest + self.position_encoding(coarsest).to(coarsest.dtype)
        fused = None
        maps = zip(self.levels, [*finer, coarsest])
        for index, (level, x) in enumerate(maps, start=-self.mask_level):
            for i, conv in enumerate(level.children()):
                x = conv(x)
                if i < index:  # the number of doublings up to the stride to keep
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            fused = x if fused is None else fused + x
        return self.localise(fused), self.classify(fused)
