"""The necks that a config can ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

from knet.modeling.bifpn import BiFPNNeck
from knet.modeling.neck import SemanticFPNNeck

__all__ = ["KNET_NECK_REGISTRY"]

KNET_NECK_REGISTRY = Registry("KNET_NECK")
KNET_NECK_REGISTRY.__doc__ = """
Callables `(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module`. The module maps the list of
feature maps named in MODEL.KNET.IN_FEATURES to a localising and a classifying map, both
(B, HIDDEN_DIM, H, W) at the stride of the feature MASK_LEVEL. Where MODEL.KNET.ROUND_LEVELS names
features, it also gives the list of their maps, (B, HIDDEN_DIM, h, w) each at its own stride; a
module that can has an attribute `round_levels` of as many indices into IN_FEATURES.
"""


@KNET_NECK_REGISTRY.register()
def build_semantic_fpn_neck(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """The published neck.

    Raises:
        ValueError: its coarsest map has a number of channels that cannot be encoded.
    """
    return SemanticFPNNeck(**_neck_arguments(cfg, input_shape))


@KNET_NECK_REGISTRY.register()
def build_bifpn_neck(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """BiFPN with MODEL.KNET.NECK_LAYERS layers; see `build_semantic_fpn_neck`."""
    layers = cfg.MODEL.KNET.NECK_LAYERS
    return BiFPNNeck(num_layers=layers, **_neck_arguments(cfg, input_shape))


def _neck_arguments(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
    knet = cfg.MODEL.KNET
    coarsest = input_shape[knet.IN_FEATURES[-1]].channels
    if coarsest % 4:
        raise ValueError(
            f"the last of MODEL.KNET.IN_FEATURES {list(knet.IN_FEATURES)} has {coarsest} channels "
            f"with {cfg.MODEL.BACKBONE.NAME}; the sine encoding needs a multiple of 4"
        )
    return {
        "in_channels": [input_shape[name].channels for name in knet.IN_FEATURES],
        "hidden_dim": knet.HIDDEN_DIM,
        "norm_groups": knet.NORM_GROUPS,
        "conv_std": knet.CONV_INIT_STD,
        "mask_level": knet.MASK_LEVEL,
        "round_levels": [list(knet.IN_FEATURES).index(name) for name in knet.ROUND_LEVELS],
    }
