"""Backbones in Detectron2's registry: importing this package registers them."""

from __future__ import annotations

from knet.modeling.backbones.common import init_fpn
from knet.modeling.backbones.deform_resnet import (
    build_deform_resnet_backbone,
    build_deform_resnet_fpn_backbone,
)
from knet.modeling.backbones.resnet_v1c import build_resnet_v1c_backbone
from knet.modeling.backbones.small_resnet import (
    build_small_resnet_backbone,
    build_small_resnet_fpn_backbone,
)
from knet.modeling.backbones.swin import (
    Swin,
    build_swin_backbone,
    build_swin_fpn_backbone,
)
from knet.modeling.backbones.timm_models import (
    TimmBackbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
)
from knet.modeling.backbones.timm_vit import PlainViT, SimplePyramid, build_timm_vit_backbone

__all__ = [
    "PlainViT",
    "SimplePyramid",
    "Swin",
    "TimmBackbone",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
    "build_resnet_v1c_backbone",
    "build_small_resnet_backbone",
    "build_small_resnet_fpn_backbone",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_vit_backbone",
    "init_fpn",
]
