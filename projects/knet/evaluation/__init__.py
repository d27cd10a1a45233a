"""Evaluators of K-Net's results.

Names are imported when they are first used: ``knet.evaluation.panoptic_quality`` alone
needs nothing but numpy, while ``build_evaluator`` needs Detectron2.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import build_evaluator
    from .derived import instance_dataset, semantic_dataset
    from .panoptic_quality import PanopticStatistics, id2rgb, pq_compute, rgb2id

__all__ = [
    "PanopticStatistics",
    "build_evaluator",
    "id2rgb",
    "instance_dataset",
    "pq_compute",
    "rgb2id",
    "semantic_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "build" if name == "build_evaluator" else "panoptic_quality"
    home = "derived" if name.endswith("_dataset") else home
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
