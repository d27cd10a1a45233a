"""When checkpoints are written: by steps and time, before evaluations, on a signal, at the end."""

from __future__ import annotations

import os
import time
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.training.stop import Agreement, Stopped, StopSignals

__all__ = ["Checkpoints"]

# of those that are written between the periods
_KEPT = 2


class Checkpoints(HookBase):
    """Writes checkpoints, and ends the training with one when a signal has come.

    It takes the place of Detectron2's `PeriodicCheckpointer`. Those written every `period` steps
    and `model_final` are all kept; of the others, between them, the newest two. Every process has
    this hook; the first one writes.

    Args:
        checkpointer: of the training.
        signals: that this process may have got.
        period: steps.
        minutes: after which a checkpoint follows the last one; 0 for none by time.
        eval_period: steps; a checkpoint comes before an evaluation, which may take long. 0: none.
    """

    def __init__(
        self,
        checkpointer: KNetCheckpointer,
        signals: StopSignals,
        *,
        period: int,
        minutes: float,
        eval_period: int,
    ) -> None:
        self._checkpointer = checkpointer
        self._signals = signals
        self._period = period
        self._seconds = 60 * minutes
        self._eval_period = eval_period
        self._between: list[str] = []

    @classmethod
    def from_config(
        cls, cfg: CfgNode, checkpointer: KNetCheckpointer, signals: StopSignals
    ) -> Checkpoints:
        """With the periods of a config."""
        return cls(
            checkpointer,
            signals,
            period=cfg.SOLVER.CHECKPOINT_PERIOD,
            minutes=cfg.SOLVER.CHECKPOINT_MINUTES,
            eval_period=cfg.TEST.EVAL_PERIOD,
        )

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
        """Writes what is due; raises `Stopped` in all processes if one was asked to stop."""
        done = self.trainer.iter + 1
        last = done == self.trainer.max_iter
        number = self._agreement.number(self._signals.received)
        name = f"model_{self.trainer.iter:07d}"
        if done % self._period == 0:
            self._save(name)
        elif not last and (number or self._is_overdue() or self._is_evaluated(done)):
            self._save_between(name)
        if last:
            self._save("model_final")  # a signal ends the evaluation that follows
        elif number:
            self._agreement.wait()  # a process that ends might end the others, too
            raise Stopped(number)

    def _is_overdue(self) -> bool:
        return 0 < self._seconds <= time.monotonic() - self._written

    def _is_evaluated(self, done: int) -> bool:
        return self._eval_period > 0 and done % self._eval_period == 0

    def _save(self, name: str) -> None:
        self._checkpointer.save(name, iteration=self.trainer.iter)
        self._written = time.monotonic()

    def _save_between(self, name: str) -> None:
        self._between.append(f"{name}.pth")
        self._save(name)
        self._remove_old()

    def _remove_old(self) -> None:
        old = self._between[:-_KEPT]
        if self._checkpointer.save_to_disk:
            manager = self._checkpointer.path_manager
            for path in (os.path.join(self._checkpointer.save_dir, file) for file in old):
                if manager.exists(path):
                    manager.rm(path)
        self._between = self._between[-_KEPT:]
