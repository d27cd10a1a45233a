"""When checkpoints are written, and what becomes of another config when one is resumed.

The config of the resumed run counts, at once; the moments of the optimiser, the iteration and the
order of the data are the checkpoint's. A checkpoint holds the keys that training depends on, so
that the differences can be told.
"""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.config_file import flat_keys, value_of
from knet.training.stop import Agreement, StopSignals

__all__ = ["Checkpoints", "format_changes", "training_keys"]

# of those that are written between the periods
_KEPT = 2
# What becomes of a new value of a key that training depends on: patterns of keys. None: not
# recorded, since it changes no weight, or says no more than other keys. The first that fits counts.
_EFFECTS: dict[str | None, str] = {
    None: "SOLVER.CHECKPOINT_* SOLVER.REFERENCE_* INPUT.*_TEST",
    "kept: another order of the data would show images twice in an epoch": "SEED",
    "from this step on": "SOLVER.ACCUMULATION_STEPS SOLVER.CLIP_GRADIENTS.* INPUT.* "
    "MODEL.KNET.FREEZE_NORM_STATS MODEL.KNET.LOSS.* MODEL.KNET.COST.*",
    "from this step on; the optimiser keeps its moments": "SOLVER.BASE_LR SOLVER.WEIGHT_DECAY "
    "SOLVER.BACKBONE_MULTIPLIER SOLVER.NO_DECAY",
    # which recorded Detectron2's default of norms, 0.0, all the same
    "from this step on; without effect in earlier versions": "SOLVER.WEIGHT_DECAY_*",
    # the last three are of newer Detectron2
    "the rate at this step is that of the new schedule": "SOLVER.MAX_ITER SOLVER.STEPS "
    "SOLVER.GAMMA SOLVER.WARMUP_* SOLVER.LR_SCHEDULER_NAME SOLVER.POLY_LR_POWER "
    "SOLVER.BASE_LR_END SOLVER.NUM_DECAYS SOLVER.RESCALE_INTERVAL",
    "from this step on; the seed and the step say which images come": "SOLVER.IMS_PER_BATCH "
    "DATASETS.TRAIN DATALOADER.FILTER_EMPTY_ANNOTATIONS DATALOADER.ASPECT_RATIO_GROUPING",
    "from this step on; a new average starts from the weights": "SOLVER.EMA",
    "from this step on; the scale of float16 gradients is found anew": "SOLVER.AMP.*",
    "from this step on; parameters that were not trained start without moments": (
        "MODEL.BACKBONE.FREEZE_AT"
    ),
    "no effect, K-Net's optimiser does not use it": "SOLVER.MOMENTUM SOLVER.NESTEROV "
    "SOLVER.BIAS_LR_FACTOR",
}


class Checkpoints(HookBase):
    """Writes checkpoints, and ends the training with one when a signal has come.

    It takes the place of Detectron2's `PeriodicCheckpointer`. Those of SOLVER.CHECKPOINT_PERIOD and
    `model_final` are all kept. Between them others come SOLVER.CHECKPOINT_MINUTES after the last
    one, and before an evaluation, which may take long; of these the newest two are kept. Every
    process has this hook; the first one writes.

    Args:
        cfg: of the training.
        checkpointer: of the training.
        signals: that this process may have got.
    """

    def __init__(self, cfg: CfgNode, checkpointer: KNetCheckpointer, signals: StopSignals) -> None:
        self._checkpointer = checkpointer
        self._signals = signals
        self._period = cfg.SOLVER.CHECKPOINT_PERIOD
        self._seconds = 60 * cfg.SOLVER.CHECKPOINT_MINUTES
        self._eval_period = cfg.TEST.EVAL_PERIOD
        self._between: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Names of the checkpoints between the periods, oldest first."""
        return {"between": list(self._between)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._between = list(state["between"])

    def before_train(self) -> None:
        """Makes up for the removal of old checkpoints that a kill may have prevented."""
        self._agreement = Agreement()
        self._written = time.monotonic()
        self._remove_old()

    def after_step(self) -> None:
        """Writes what is due; raises `Stopped` in all processes if one was asked to stop.

        Raises:
            FloatingPointError: before a checkpoint, as of `TrainStep.require_finite`.
        """
        done = self.trainer.iter + 1
        last = done == self.trainer.max_iter
        stop = self._agreement.stop(self._signals.received)
        evaluated = self._eval_period > 0 and done % self._eval_period == 0
        overdue = 0 < self._seconds <= time.monotonic() - self._written
        name = f"model_{self.trainer.iter:07d}"
        if stop:  # the same in all processes
            self.trainer._trainer.flush_metrics()
        if done % self._period == 0:
            self._save(name)
        elif not last and (stop or overdue or evaluated):
            self._between.append(f"{name}.pth")
            self._save(name)
            self._remove_old()
        if last:
            self._save("model_final")  # a signal ends the evaluation that follows
        elif stop:
            self._agreement.wait()  # a process that ends might end the others, too
            raise stop

    def _save(self, name: str) -> None:
        self.trainer._trainer.require_finite()
        self._checkpointer.save(name, iteration=self.trainer.iter)
        self._written = time.monotonic()

    def _remove_old(self) -> None:
        old, self._between = self._between[:-_KEPT], self._between[-_KEPT:]
        if self._checkpointer.save_to_disk:
            manager = self._checkpointer.path_manager
            for path in (os.path.join(self._checkpointer.save_dir, file) for file in old):
                if manager.exists(path):
                    manager.rm(path)


def training_keys(cfg: CfgNode) -> dict[str, Any]:
    """Every key of a config that training depends on, but for the model: {"SOLVER.BASE_LR": …}."""
    keys = [key for key in flat_keys(cfg) if _effect(key) is not None]
    return {key: _plain(value_of(cfg, key)) for key in keys}


def format_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A table of the keys whose value has changed, and what happens; empty if none has.

    Keys that only one of them knows, as of another version of this package, are left out.
    """
    changed = [key for key in now if key in then and then[key] != now[key]]
    rows = [(key, f"{then[key]} -> {now[key]}", _effect(key) or "") for key in changed]
    widths = [max(len(row[column]) for row in rows) if rows else 0 for column in (0, 1)]
    return "\n".join(f"  {k:{widths[0]}}  {v:{widths[1]}}  {effect}" for k, v, effect in rows)


def _effect(key: str) -> str | None:
    for effect, patterns in _EFFECTS.items():
        if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns.split()):
            return effect
    return None


def _plain(value: Any) -> Any:
    """Lists for tuples: which of them it is depends on where the value was written."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
