"""A training as its terminal shows it: what is trained on what, then a short line a period."""

from __future__ import annotations

import datetime
import importlib
import logging
import os
import sys
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

__all__ = ["Progress"]

logger = logging.getLogger(__name__)


class Progress(HookBase):
    """Logs a start of a few lines, and a line after the first steps and each period.

    All losses, and more, are in the lines of Detectron2's writers (`log.txt`, `metrics.json`).

    Args:
        cfg: of the training.
        dtype: of mixed precision; None for float32.
        period: steps between two lines.
    """

    def __init__(self, cfg: CfgNode, dtype: torch.dtype | None, period: int = 20) -> None:
        self.cfg = cfg
        self.precision = "float32" if dtype is None else f"{str(dtype).rpartition('.')[2]}, mixed"
        self.period = period

    def before_train(self) -> None:
        """What is trained on what, where, and how long."""
        cfg, trainer = self.cfg, self.trainer
        parameters = list(trainer.model.parameters())
        trained = _numbers(p for p in parameters if p.requires_grad)
        processes, device = comm.get_world_size(), torch.device(cfg.MODEL.DEVICE)
        where = f"{processes} processes, each on " if processes > 1 else ""
        where += _name(device)
        first, last = trainer.start_iter + 1, trainer.max_iter
        for line in (
            f"training K-Net with {cfg.MODEL.BACKBONE.NAME} on {', '.join(cfg.DATASETS.TRAIN)}",
            f"  {_numbers(parameters):,} parameters, {trained:,} of them trained, {self.precision}",
            f"  steps {first:,} to {last:,}, of {cfg.SOLVER.IMS_PER_BATCH} images each, on {where}",
            f"  to {cfg.OUTPUT_DIR}, where log.txt has all details",
        ):
            logger.info("%s", line)

    def after_step(self) -> None:
        """A line after the first step, the fifth (which knows the time left), and each period."""
        step, last = self.trainer.iter + 1, self.trainer.max_iter
        if step - self.trainer.start_iter in (1, 5) or step % self.period == 0 or step == last:
            logger.info("%s", self._line(step, last))

    def after_train(self) -> None:
        """Where the weights are, once all steps are done."""
        if self.trainer.start_iter < self.trainer.iter == self.trainer.max_iter:
            path = os.path.join(self.cfg.OUTPUT_DIR, "model_final.pth")
            logger.info("trained: %s", path)

    def _line(self, step: int, last: int) -> str:
        histories = self.trainer.storage.histories()
        loss, rate = histories["total_loss"].median(self.period), histories["lr"].latest()
        parts = [f"step {step:,} of {last:,}", f"loss {loss:.4g}", f"rate {rate:.3g}"]
        if "time" in histories:  # not of the first steps, which are slow
            seconds = histories["time"].median(1000)
            left = datetime.timedelta(seconds=round(seconds * (last - step)))
            parts.insert(1, f"{left} left")
            parts.append(f"{seconds:.3g} s a step")
            parts.append(f"{self.cfg.SOLVER.IMS_PER_BATCH / seconds:.3g} images/s")
        memory = _largest_memory()
        if memory:
            parts.append(f"{memory / 2**30:.1f} GB")
        return "  ".join(parts)


def _numbers(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type.upper()} ({threads} thread{'s' * (threads > 1)})"


def _largest_memory() -> int:
    """Bytes that this process has had so far, on its GPU or else of the machine; 0: unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # not on Windows
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
