"""A small residual network with an FPN, for training from scratch within minutes on a CPU."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import Tensor
from torch.nn import functional as F


class SmallStem(CNNBlockBase):
    """One 3x3 convolution, norm, ReLU.

    Args:
        in_channels, out_channels, stride: of the convolution.
        norm: name of a norm, as in Detectron2.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.conv1 = Conv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            stride=stride,
            padding=1,
            bias=False,
            norm=get_norm(norm, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        return F.relu_(self.conv1(x))


@BACKBONE_REGISTRY.register()
def build_small_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Basic blocks of MODEL.SMALL_RESNET.CHANNELS, the first stage at the stem's stride."""
    small = cfg.MODEL.SMALL_RESNET
    stem = SmallStem(
        input_shape.channels, small.CHANNELS[0], stride=small.STEM_STRIDE, norm=small.NORM
    )
    stages, width = [], small.CHANNELS[0]
    for i, (channels, blocks) in enumerate(zip(small.CHANNELS, small.BLOCKS)):
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                blocks,
                stride_per_block=[1 if i == 0 else 2] + [1] * (blocks - 1),
                in_channels=width,
                out_channels=channels,
                norm=small.NORM,
            )
        )
        width = channels
    names = [f"res{i + 2}" for i in range(len(stages))]
    return ResNet(stem, stages, out_features=names, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_small_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same under an FPN."""
    resnet = build_small_resnet_backbone(cfg, input_shape)
    names = list(resnet.output_shape())
    return FPN(resnet, names, cfg.MODEL.FPN.OUT_CHANNELS, norm=cfg.MODEL.FPN.NORM)
