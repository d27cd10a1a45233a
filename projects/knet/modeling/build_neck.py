"""Registry of necks: register one, name it in MODEL.KNET.NECK, and it takes the FPN's place."""

from __future__ import annotations

import difflib
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
    """The neck that the config names; ValueError for an unknown name."""
    name = require_registered(KNET_NECK_REGISTRY, "MODEL.KNET.NECK", cfg.MODEL.KNET.NECK)
    return KNET_NECK_REGISTRY.get(name)(cfg, input_shape)


def require_registered(registry: Registry, key: str, name: str) -> str:
    """The name itself; ValueError if the registry has no such thing."""
    if name not in registry:
        known = [known for known, _ in registry]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)
        raise ValueError(
            f"{key} is {name!r}, which nothing is registered as; there are {', '.join(near)}"
        )
    return name
