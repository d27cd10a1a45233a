"""ResNet-V1c: a stem of three 3x3 convolutions, and dilated last stages (He et al., 2019)."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor
from torch.nn import functional as F

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class DeepStem(CNNBlockBase):
    """Three 3x3 convolutions, the first with stride 2, and a max pooling with stride 2.

    Args:
        in_channels, out_channels: widths; the inner width is half of the output's.
        norm: name of a norm, as in Detectron2.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: str) -> None:
        super().__init__(in_channels, out_channels, stride=4)
        inner = out_channels // 2

        def conv(width_in: int, width_out: int, stride: int = 1) -> Conv2d:
            return Conv2d(
                width_in,
                width_out,
                kernel_size=3,
                stride=stride,
                padding=1,
                bias=False,
                norm=get_norm(norm, width_out),
                activation=F.relu_,
            )

        self.conv1 = conv(in_channels, inner, stride=2)
        self.conv2 = conv(inner, inner)
        self.conv3 = conv(inner, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / 4, W / 4)."""
        x = self.conv3(self.conv2(self.conv1(x)))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


@BACKBONE_REGISTRY.register()
def build_resnet_v1c_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """ResNet-V1c of MODEL.RESNETS.DEPTH, with MODEL.RESNET_V1C.OUTPUT_STRIDE.

    A stage that would go beyond that stride is dilated instead, its first block half as much as
    the others, as in the published models.

    Raises:
        ValueError: an unknown depth.
    """
    resnets = cfg.MODEL.RESNETS
    output_stride = cfg.MODEL.RESNET_V1C.OUTPUT_STRIDE
    if resnets.DEPTH not in _BLOCKS:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}; ResNet-V1c has {list(_BLOCKS)}")
    norm = resnets.NORM
    width = resnets.STEM_OUT_CHANNELS
    stem = DeepStem(input_shape.channels, width, norm=norm)
    stages, stride, dilation = [], 4, 1
    for i, blocks in enumerate(_BLOCKS[resnets.DEPTH]):
        first_stride, first_dilation = 1, dilation
        if i > 0 and stride < output_stride:
            first_stride = 2
            stride *= 2
        elif i > 0:
            dilation *= 2
        channels = resnets.RES2_OUT_CHANNELS * 2**i
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                blocks,
                stride_per_block=[first_stride] + [1] * (blocks - 1),
                dilation_per_block=[first_dilation] + [dilation] * (blocks - 1),
                in_channels=width,
                out_channels=channels,
                bottleneck_channels=channels // 4,
                num_groups=1,
                norm=norm,
                stride_in_1x1=False,
            )
        )
        width = channels
    backbone = ResNet(stem, stages, out_features=resnets.OUT_FEATURES)
    return backbone.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
