"""Semantic models, whose first kernels are the rows of a pixel classifier (K-Net §3.4).

A pixel decoder makes one map of pixel features out of the backbone's maps. Each is the body of a
well-known segmentation network without its classifier: FCN (Long et al., 2015), PSPNet (Zhao et
al., 2017), DeepLabV3 (Chen et al., 2017) and UPerNet (Xiao et al., 2018).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knet.modeling.kernels import KernelRounds
from knet.modeling.layers import ConvNormReLU, NormFactory
from knet.modeling.outputs import InitialKernels, RoundOutput


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize (align_corners=False) to the height and width of another map."""
    # a traced graph must not depend on whether two sizes happen to be equal
    if not torch.compiler.is_compiling() and x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class FCNDecoder(nn.Module):
    """3x3 convolutions on the coarsest map.

    Args:
        in_channels: width of each map, finest first; the last one is used.
        channels: width C of the output.
        norm: makes normalisation layers.
        num_convs: number of convolutions.
        concat_input: join input and result in one more convolution.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int,
        norm: NormFactory,
        num_convs: int = 2,
        concat_input: bool = True,
    ) -> None:
        super().__init__()
        width = in_channels[-1]
        self.convs = nn.Sequential(
            *(
                ConvNormReLU(channels if i else width, channels, kernel_size=3, norm=norm)
                for i in range(num_convs)
            )
        )
        self.concat = None
        if concat_input:
            self.concat = ConvNormReLU(width + channels, channels, kernel_size=3, norm=norm)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first -> (B, C, H, W) of the last one."""
        x = features[-1]
        out = self.convs(x)
        return out if self.concat is None else self.concat(torch.cat([x, out], dim=1))


class PyramidPooling(nn.Module):
    """Averages over 1, 2 x 2, 3 x 3 … regions, joined with the map (PSPNet, fig. 3).

    Args:
        in_channels, channels: widths of the map and of each level of averages.
        norm: makes normalisation layers.
        scales: regions along each side.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        norm: NormFactory,
        scales: Sequence[int] = (1, 2, 3, 6),
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(scale),
                ConvNormReLU(in_channels, channels, kernel_size=1, norm=norm),
            )
            for scale in scales
        )
        self.out_channels = in_channels + len(scales) * channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, in + len(scales) * C, H, W)."""
        return torch.cat([x, *(resize_to(level(x), x) for level in self.levels)], dim=1)


class PSPDecoder(nn.Module):
    """Pyramid pooling of the coarsest map.

    Args:
        in_channels, channels, norm: as of `FCNDecoder`.
    """

    def __init__(self, *, in_channels: Sequence[int], channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.pooling = PyramidPooling(in_channels[-1], channels, norm=norm)
        self.bottleneck = ConvNormReLU(
            self.pooling.out_channels, channels, kernel_size=3, norm=norm
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first -> (B, C, H, W) of the last one."""
        return self.bottleneck(self.pooling(features[-1]))


class ASPPDecoder(nn.Module):
    """Atrous spatial pyramid pooling of the coarsest map (DeepLabV3, §3.3).

    Args:
        in_channels, channels, norm: as of `FCNDecoder`.
        dilations: of the parallel convolutions; 1 stands for a 1x1 convolution.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int,
        norm: NormFactory,
        dilations: Sequence[int] = (1, 12, 24, 36),
    ) -> None:
        super().__init__()
        width = in_channels[-1]
        self.image_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), ConvNormReLU(width, channels, kernel_size=1, norm=norm)
        )
        self.branches = nn.ModuleList(
            ConvNormReLU(width, channels, kernel_size=1 if d == 1 else 3, dilation=d, norm=norm)
            for d in dilations
        )
        joined = channels * (len(dilations) + 1)
        self.bottleneck = ConvNormReLU(joined, channels, kernel_size=3, norm=norm)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first -> (B, C, H, W) of the last one."""
        x = features[-1]
        pooled = resize_to(self.image_pool(x), x)
        return self.bottleneck(torch.cat([pooled, *(branch(x) for branch in self.branches)], dim=1))


class UPerDecoder(nn.Module):
    """A feature pyramid over all maps, pyramid pooling on top (UPerNet, fig. 4).

    Args:
        in_channels, channels, norm: as of `FCNDecoder`; every map is used.
    """

    def __init__(self, *, in_channels: Sequence[int], channels: int, norm: NormFactory) -> None:
        super().__init__()
        if len(in_channels) < 2:
            raise ValueError(
                f"UPerDecoder fuses at least two maps, got {len(in_channels)}: "
                "see MODEL.KNET.IN_FEATURES"
            )
        *finer, coarsest = in_channels
        self.pooling = PyramidPooling(coarsest, channels, norm=norm)
        self.bottleneck = ConvNormReLU(
            self.pooling.out_channels, channels, kernel_size=3, norm=norm
        )
        self.lateral_convs = nn.ModuleList(
            ConvNormReLU(width, channels, kernel_size=1, norm=norm) for width in finer
        )
        self.output_convs = nn.ModuleList(
            ConvNormReLU(channels, channels, kernel_size=3, norm=norm) for _ in finer
        )
        joined = channels * len(in_channels)
        self.fuse = ConvNormReLU(joined, channels, kernel_size=3, norm=norm)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first -> (B, C, H, W) of the first one."""
        *finer, coarsest = features
        top = self.bottleneck(self.pooling(coarsest))
        outputs = [top]
        for x, lateral, output in reversed(list(zip(finer, self.lateral_convs, self.output_convs))):
            x = lateral(x)
            top = x + resize_to(top, x)
            outputs.insert(0, output(top))
        finest = outputs[0]
        return self.fuse(torch.cat([resize_to(x, finest) for x in outputs], dim=1))


PIXEL_DECODERS = {
    "fcn": FCNDecoder,
    "psp": PSPDecoder,
    "aspp": ASPPDecoder,
    "uper": UPerDecoder,
}


class PixelClassifier(nn.Module):
    """Pixel decoder, dropout of whole channels, 1x1 classifier.

    Args:
        decoder: maps the backbone's features to one map of `channels`.
        channels: width C.
        num_classes: K.
        dropout: probability; 0 for none.
    """

    def __init__(
        self, decoder: nn.Module, *, channels: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        for layer in decoder.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.get_parameter("bias"))

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, C_i, H_i, W_i) -> pixel features (B, C, H, W), class logits (B, K, H, W)."""
        pixels = self.decoder(features)
        return pixels, self.classifier(self.dropout(pixels))


class SemanticHeads(nn.Module):
    """Semantic models: the rows of a classifier are the initial kernels, one a class (K-Net §3.4).

    The classifier's bias is no part of a kernel, and what dropout zeroes in training is zeroed for
    the first logits only.

    Args:
        kernel_head: classifies pixels for the first time.
        rounds: the update rounds, with soft groups and without class branch.
        auxiliary: classifies pixels of one feature map in training, for its gradient; or None.
        auxiliary_index: which of the feature maps.
    """

    def __init__(
        self,
        *,
        kernel_head: PixelClassifier,
        rounds: KernelRounds,
        auxiliary: PixelClassifier | None = None,
        auxiliary_index: int = -2,
    ) -> None:
        super().__init__()
        self.kernel_head = kernel_head
        self.rounds = rounds
        self.auxiliary = auxiliary
        self.auxiliary_index = auxiliary_index

    def forward(
        self, features: Sequence[Tensor], targets: Tensor | None = None
    ) -> tuple[InitialKernels, list[RoundOutput]]:
        """Maps (B, C_i, H_i, W_i), finest first -> initial kernels and every round.

        Targets are of no use here; `KNetHeads` may need them.
        """
        pixels, logits = self.kernel_head(features)
        kernels = self.kernel_head.classifier.weight.flatten(1).expand(pixels.shape[0], -1, -1)
        auxiliary = None
        if self.auxiliary is not None and self.training:
            _, auxiliary = self.auxiliary([features[self.auxiliary_index]])
        initial = InitialKernels(pixels, kernels, logits, logits, auxiliary)
        rounds = self.rounds(initial.features, initial.kernels, initial.masks)
        return initial, rounds
