"""What several backbones share: an FPN on top, and the import of timm."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.modeling.backbone import FPN
from torch import nn

FEATURES = ("res2", "res3", "res4", "res5")


def add_fpn(backbone: Backbone, cfg: CfgNode) -> FPN:
    """An FPN of MODEL.FPN on a backbone; its outputs are named p2, p3 … by stride.

    Raises:
        ValueError: MODEL.FPN.IN_FEATURES are not among the outputs of the backbone.
    """
    fpn = cfg.MODEL.FPN
    offered = list(backbone.output_shape())
    if not fpn.IN_FEATURES or set(fpn.IN_FEATURES) - set(offered):
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES is {list(fpn.IN_FEATURES)}; {cfg.MODEL.BACKBONE.NAME} gives "
            f"{offered}: choose neighbours of these, finest first"
        )
    return FPN(backbone, fpn.IN_FEATURES, fpn.OUT_CHANNELS, norm=fpn.NORM, fuse_type=fpn.FUSE_TYPE)


def init_fpn(backbone: Backbone) -> Backbone:
    """The same backbone; its FPN, if it is one, initialised as published: Detectron2's differs."""
    if isinstance(backbone, FPN):
        for conv in [*backbone.lateral_convs, *backbone.output_convs]:
            nn.init.xavier_uniform_(conv.weight)
    return backbone


def check_features(key: str, names: Sequence[str]) -> list[str]:
    """The names of a config key as a list, if all are stages.

    Raises:
        ValueError: naming the key, if it is empty or has other names.
    """
    if not names or set(names) - set(FEATURES):
        raise ValueError(f"{key} is {list(names)}; choose from {list(FEATURES)}")
    return list(names)


def import_timm(module: str, needed_by: str) -> Any:
    """The module `timm` or one of its parts.

    Args:
        module: its full name.
        needed_by: what of ours needs it, for the message.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ImportError(
            f"{needed_by} needs timm, which is not installed: run `pip install timm`, or "
            "`pip install -e .[timm]` in the repository root",
            name="timm",
        ) from error
