"""Weights & Biases and MLflow, where they are installed and asked for (TRACKING.WRITERS)."""

from __future__ import annotations

import abc
import importlib
import os
import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from knet.errors import UserError

__all__ = ["MlflowWriter", "Tracker", "WandbWriter", "build_trackers"]

_SMOOTHED = 20  # values of a noisy scalar, as in Detectron2's own writers


class Tracker(EventWriter, abc.ABC):
    """Sends the scalars that are new since the last call to a run of a tracking service.

    The run begins with the first values, so that a training that fails before has none. A
    resumed training goes on with its run.

    Args:
        cfg: of the training; the run is named after its OUTPUT_DIR.

    Raises:
        UserError: the package is missing.

    Attributes:
        run_id: of the run; empty before it has begun. Checkpoints keep it.
    """

    package = ""

    def __init__(self, cfg: CfgNode) -> None:
        try:
            self._module: Any = importlib.import_module(self.package)
        except ImportError as error:
            raise UserError(
                f"TRACKING.WRITERS names {self.package}, which cannot be imported ({error}): "
                f"pip install {self.package}, or leave it out"
            ) from error
        self._cfg = cfg
        self._name = os.path.basename(os.path.abspath(cfg.OUTPUT_DIR))
        self._last = -1
        self._begun = False
        self.run_id = ""

    def write(self) -> None:
        """Send what is new; begins the run if need be."""
        by_step: dict[int, dict[str, float]] = {}
        for name, (value, step) in (
            get_event_storage().latest_with_smoothing_hint(_SMOOTHED).items()
        ):
            if step > self._last:
                by_step.setdefault(step, {})[name] = float(value)
        if not by_step:
            return
        if not self._begun:
            self._begin()
            self._begun = True
        for step in sorted(by_step):
            self._send(by_step[step], step)
        self._last = max(by_step)

    def close(self) -> None:
        """End the run."""
        if self._begun:
            self._begun = False
            self._end()

    @abc.abstractmethod
    def _begin(self) -> None:
        """Begin a run, or go on with `run_id`."""

    @abc.abstractmethod
    def _send(self, values: dict[str, float], step: int) -> None:
        """Hand over the scalars of a step."""

    @abc.abstractmethod
    def _end(self) -> None:
        """End the run."""


class WandbWriter(Tracker):
    """Weights & Biases; where to and as whom its own environment variables say (WANDB_MODE …)."""

    package = "wandb"

    def _begin(self) -> None:
        self._run = self._module.init(
            project=self._cfg.TRACKING.PROJECT,
            name=self._name,
            dir=self._cfg.OUTPUT_DIR,
            config=_plain(self._cfg),
            id=self.run_id or None,
            resume="allow",
        )
        self.run_id = self._run.id

    def _send(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def _end(self) -> None:
        self._run.finish()


class MlflowWriter(Tracker):
    """MLflow; the environment variable MLFLOW_TRACKING_URI says where to."""

    package = "mlflow"

    def _begin(self) -> None:
        self._module.set_experiment(self._cfg.TRACKING.PROJECT)
        if self.run_id:
            self._module.start_run(run_id=self.run_id)
            return
        self.run_id = self._module.start_run(run_name=self._name).info.run_id
        self._module.log_text(self._cfg.dump(), "config.yaml")

    def _send(self, values: dict[str, float], step: int) -> None:
        # names of classes may hold signs that MLflow refuses
        named = {re.sub(r"[^\w\-. /]", "_", n, flags=re.ASCII): v for n, v in values.items()}
        self._module.log_metrics(named, step=step)

    def _end(self) -> None:
        self._module.end_run()


_TRACKERS: dict[str, type[Tracker]] = {"wandb": WandbWriter, "mlflow": MlflowWriter}


def build_trackers(cfg: CfgNode) -> list[Tracker]:
    """The writers that TRACKING.WRITERS names; UserError if a package is missing."""
    return [_TRACKERS[name](cfg) for name in cfg.TRACKING.WRITERS]


def _plain(value: Any) -> Any:
    """A config as dicts, which services can show."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
