"""ResNet whose 3x3 convolutions are deformable (Dai et al., 2017; Zhu et al., 2019)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.resnet import DeformBottleneckBlock, build_resnet_backbone
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from knet.modeling.backbones.common import add_fpn


class DeformConv(nn.Module):
    """Deformable convolution on torchvision's operator, which every build has.

    It takes over weight and norm of Detectron2's module, whose own operator is compiled with
    Detectron2 and which knows one group of offsets only on the CPU.

    Args:
        conv: Detectron2's `DeformConv` or `ModulatedDeformConv`, without bias.
    """

    weight: nn.Parameter
    norm: nn.Module | None

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.weight = conv.weight
        self.norm = conv.norm
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve at shifted positions.

        Args:
            x: (B, C, H, W).
            offset: (B, G * 2 * 9, H', W'), pairs of row and column shift, kernel positions row by
                row; G groups of input channels have their own.
            mask: (B, G * 9, H', W') weights of the positions, or None for 1.

        Returns:
            (B, C, H', W') after the norm.
        """
        # positions in half precision would be off by whole pixels in large maps
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            out = deform_conv2d(
                x.to(exact),
                offset.to(exact),
                self.weight.to(exact),
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                mask=None if mask is None else mask.to(exact),
            )
        out = out.to(x.dtype)
        return out if self.norm is None else self.norm(out)


@BACKBONE_REGISTRY.register()
def build_deform_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet of MODEL.RESNETS with deformable convolutions that need no compiler.

    MODEL.RESNETS.DEFORM_ON_PER_STAGE says in which of res2 … res5, DEFORM_MODULATED whether
    positions are weighted as well (DCNv2), DEFORM_NUM_GROUPS how many groups of channels have
    their own offsets. Offsets start at 0. The published models deform res3 to res5, unmodulated.

    Raises:
        ValueError: no stage is deformable, or the depth has no 3x3 bottleneck.
    """
    resnets = cfg.MODEL.RESNETS
    per_stage = list(resnets.DEFORM_ON_PER_STAGE)
    if len(per_stage) != 4 or not any(per_stage):
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {per_stage}; it takes a boolean for each of "
            "res2 to res5, at least one True: [False, True, True, True] as published, or use "
            "build_resnet_backbone for a plain ResNet"
        )
    if resnets.DEPTH < 50:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}; deformable stages need 50, 101 or 152"
        )
    backbone = build_resnet_backbone(cfg, input_shape)
    for module in backbone.modules():
        if isinstance(module, DeformBottleneckBlock):
            module.conv2 = DeformConv(module.conv2)
    return backbone


@BACKBONE_REGISTRY.register()
def build_deform_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same under an FPN."""
    return add_fpn(build_deform_resnet_backbone(cfg, input_shape), cfg)
