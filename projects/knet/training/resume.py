"""What becomes of a config that is not the one that a resumed training began with.

The config of the resumed run counts, at once; the moments of the optimiser, the iteration and the
order of the data are the checkpoint's. A checkpoint holds the keys that training depends on, so
that the differences can be told.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from knet.config_file import flat_keys

__all__ = ["format_changes", "training_keys"]

# Keys that training depends on, as patterns: what becomes of a new value. None: not recorded, since
# it changes no weight, or says no more than other keys. The first pattern that fits counts.
_SCHEDULE = "the rate at this step is that of the new schedule"
_DATA = "from this step on; the seed and the step say which images come"
_GROUPS = "from this step on; parameters that were not trained start without moments"
_UNUSED = "no effect, K-Net's optimiser does not use it"
_EFFECTS: dict[str, str | None] = {
    "SEED": "kept: another order of the data would show images twice in an epoch",
    "SOLVER.CHECKPOINT_*": None,
    "SOLVER.REFERENCE_WORLD_SIZE": None,
    "SOLVER.BASE_LR": "from this step on; the optimiser keeps its moments",
    "SOLVER.BACKBONE_MULTIPLIER": "from this step on; the optimiser keeps its moments",
    "SOLVER.WEIGHT_DECAY": "from this step on; the optimiser keeps its moments",
    # which recorded Detectron2's default of the norms' one, 0.0, all the same
    "SOLVER.WEIGHT_DECAY_*": "from this step on; without effect in earlier versions",
    "SOLVER.NO_DECAY": "from this step on; the optimiser keeps its moments",
    "SOLVER.MAX_ITER": _SCHEDULE,
    "SOLVER.STEPS": _SCHEDULE,
    "SOLVER.GAMMA": _SCHEDULE,
    "SOLVER.WARMUP_*": _SCHEDULE,
    "SOLVER.LR_SCHEDULER_NAME": _SCHEDULE,
    "SOLVER.POLY_LR_POWER": _SCHEDULE,
    # of schedules of newer Detectron2
    "SOLVER.BASE_LR_END": _SCHEDULE,
    "SOLVER.NUM_DECAYS": _SCHEDULE,
    "SOLVER.RESCALE_INTERVAL": _SCHEDULE,
    "SOLVER.IMS_PER_BATCH": _DATA,
    "SOLVER.ACCUMULATION_STEPS": "from this step on",
    "SOLVER.CLIP_GRADIENTS.*": "from this step on",
    "SOLVER.AMP.*": "from this step on; the scale of float16 gradients is found anew",
    "SOLVER.MOMENTUM": _UNUSED,
    "SOLVER.NESTEROV": _UNUSED,
    "SOLVER.BIAS_LR_FACTOR": _UNUSED,
    "DATASETS.TRAIN": _DATA,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": _DATA,
    "DATALOADER.ASPECT_RATIO_GROUPING": _DATA,
    "INPUT.*_TEST": None,
    "INPUT.*": "from this step on",
    "MODEL.BACKBONE.FREEZE_AT": _GROUPS,
    "MODEL.KNET.FREEZE_NORM_STATS": "from this step on",
    "MODEL.KNET.LOSS.*": "from this step on",
    "MODEL.KNET.COST.*": "from this step on",
}


def training_keys(cfg: CfgNode) -> dict[str, Any]:
    """Every key of a config that training depends on, but for the model: {"SOLVER.BASE_LR": …}."""
    return {key: _plain(_value(cfg, key)) for key in flat_keys(cfg) if _effect(key) is not None}


def format_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A table of the keys whose value has changed, and what happens; empty if none has.

    Keys that only one of them knows, as of another version of this package, are left out.
    """
    changed = [key for key in now if key in then and then[key] != now[key]]
    rows = [(key, f"{then[key]} -> {now[key]}", _effect(key) or "") for key in changed]
    widths = [max(len(row[column]) for row in rows) if rows else 0 for column in (0, 1)]
    return "\n".join(f"  {k:{widths[0]}}  {v:{widths[1]}}  {effect}" for k, v, effect in rows)


def _effect(key: str) -> str | None:
    return next((e for pattern, e in _EFFECTS.items() if fnmatch.fnmatchcase(key, pattern)), None)


def _value(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), cfg)


def _plain(value: Any) -> Any:
    """Lists for tuples: which of them it is depends on where the value was written."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
