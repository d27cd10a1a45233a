"""Registry of necks: register one, name it in MODEL.KNET.NECK, and it takes the FPN's place."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

from knet.modeling.neck import SemanticFPNNeck

KNET_NECK_REGISTRY = Registry("KNET_NECK")
KNET_NECK_REGISTRY.__doc__ = """
Callables `(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module`. The module maps the list of
feature maps named in MODEL.KNET.IN_FEATURES to a localising and a classifying map, both
(B, HIDDEN_DIM, H, W) at the stride of the second feature.
"""


@KNET_NECK_REGISTRY.register()
def build_semantic_fpn_neck(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """The published neck."""
    knet = cfg.MODEL.KNET
    return SemanticFPNNeck(
        in_channels=[input_shape[name].channels for name in knet.IN_FEATURES],
        hidden_dim=knet.HIDDEN_DIM,
        norm_groups=knet.NORM_GROUPS,
        conv_std=knet.CONV_INIT_STD,
    )


def build_neck(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """The neck that the config names."""
    return KNET_NECK_REGISTRY.get(cfg.MODEL.KNET.NECK)(cfg, input_shape)
