"""K-Net for Detectron2: segmentation by a small set of learned, updated kernels.

Importing ``knet`` is quick: PyTorch and Detectron2 come with the first name that needs them. It is
imported before Detectron2, which it fits to current libraries (`knet.compat`). Without Detectron2
the parts that need torch alone stay importable, such as ``knet.modeling.kernels``,
``knet.modeling.losses`` and ``knet.modeling.panoptic``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from knet.compat import fit_detectron2, require_detectron2

if TYPE_CHECKING:
    from knet.config import add_knet_config, get_cfg_from_file
    from knet.errors import UserError
    from knet.modeling.knet import KNet
    from knet.predictor import KNetPredictor
    from knet.recipe import train_folder
    from knet.training.run import evaluate, train

__version__ = "0.1.0"
__all__ = [
    "KNet",
    "KNetPredictor",
    "UserError",
    "add_knet_config",
    "evaluate",
    "get_cfg_from_file",
    "train",
    "train_folder",
]
_HOMES = {
    "KNet": "knet.modeling.knet",
    "KNetPredictor": "knet.predictor",
    "UserError": "knet.errors",
    "add_knet_config": "knet.config",
    "evaluate": "knet.training.run",
    "get_cfg_from_file": "knet.config",
    "train": "knet.training.run",
    "train_folder": "knet.recipe",
}

fit_detectron2()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "UserError":
        require_detectron2()
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
