"""What of a training a user sees in the terminal; `log.txt` in the output folder gets everything.

The terminal gets this package's own news, above all those of `Progress`, and the warnings of all
libraries.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import logging
import os
import sys
from collections.abc import Iterable, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import Tensor

from knet.errors import is_shown
from knet.free_memory import peak_memory

__all__ = ["Progress", "is_reported", "only_errors", "quiet_terminal", "set_up"]

logger = logging.getLogger(__name__)

# steps between two lines of Progress, and between what Detectron2's writers write
_PERIOD = 20
# lines of libraries that are news all the same: the logger and how the line begins
_NEWS = {
    "fvcore.common.checkpoint": "Saving checkpoint",
    "detectron2.evaluation.evaluator": "Inference done",
    "detectron2.evaluation.testing": "Results verification",
}


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's `default_setup`, with a terminal that shows little."""
    output, rank = cfg.OUTPUT_DIR, comm.get_rank()
    loggers = [
        # word for word as `default_setup` calls it, which then gets these loggers as they are
        setup_logger(output, distributed_rank=rank, name="fvcore"),
        setup_logger(output, distributed_rank=rank),
        setup_logger(output, distributed_rank=rank, name="knet"),
    ]
    quiet_terminal(loggers)
    # at each start it says that a PyTorch for GPUs has found none
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    default_setup(cfg, args)


def quiet_terminal(loggers: Iterable[logging.Logger]) -> None:
    """Have the terminal get news alone, in short lines; files still get everything."""
    for handler in {handler for each in loggers for handler in each.handlers}:
        if getattr(handler, "stream", None) is sys.stdout:
            handler.addFilter(_is_news)
            handler.setFormatter(_ShortLines("[%(asctime)s] %(message)s", datefmt="%H:%M:%S"))


@contextlib.contextmanager
def only_errors() -> Iterator[None]:
    """Within, this package logs errors alone: what is tried out is no news."""
    ours = logging.getLogger("knet")
    level = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(level)


def _is_news(record: logging.LogRecord) -> bool:
    if not is_shown(record):
        return False
    if record.levelno > logging.INFO:
        return True
    if record.name.startswith("knet."):
        return record.levelno == logging.INFO
    start = _NEWS.get(record.name)
    return start is not None and record.getMessage().startswith(start)


class _ShortLines(logging.Formatter):
    """Time and message; a warning or an error says that it is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = super().formatMessage(record)
        if record.levelno > logging.INFO:
            line = line.replace(record.message, f"{record.levelname}: {record.message}", 1)
        return line


def is_reported(trainer: TrainerBase) -> bool:
    """Whether metrics of the running step are shown or written.

    They are of the first step, the fifth (which knows the time left), each period and the last.
    """
    step = trainer.iter + 1
    early = step - trainer.start_iter in (1, 5)
    return early or step % _PERIOD == 0 or step == trainer.max_iter


class Progress(HookBase):
    """Logs a start of a few lines: what is trained on what; then a short line a period.

    All losses, and more, are in the lines of Detectron2's writers (`log.txt`, `metrics.json`).

    Args:
        cfg: of the training.
        dtype: of mixed precision; None for float32.
        rate_from: what the learning rate was scaled from, as the end of a line; empty if it was
            not.
    """

    def __init__(self, cfg: CfgNode, dtype: torch.dtype | None, rate_from: str = "") -> None:
        self.cfg = cfg
        self.rate_from = rate_from
        self.precision = "float32" if dtype is None else f"{str(dtype).rpartition('.')[2]}, mixed"

    def before_train(self) -> None:
        """What is trained on what, where, and how long."""
        cfg, trainer = self.cfg, self.trainer
        parameters = list(trainer.model.parameters())
        trained = _numbers(p for p in parameters if p.requires_grad)
        processes = comm.get_world_size()
        where = f"{processes} processes, each on " if processes > 1 else ""
        where += _name(torch.device(cfg.MODEL.DEVICE))
        first, last = trainer.start_iter + 1, trainer.max_iter
        for line in (
            f"training K-Net with {cfg.MODEL.BACKBONE.NAME} on {', '.join(cfg.DATASETS.TRAIN)}",
            f"  {_numbers(parameters):,} parameters, {trained:,} of them trained, {self.precision}",
            f"  steps {first:,} to {last:,}, of {_batch(cfg.SOLVER, processes)}, on {where}",
            f"  learning rate {cfg.SOLVER.BASE_LR:.3g}{self.rate_from}; of the backbone "
            f"{cfg.SOLVER.BASE_LR * cfg.SOLVER.BACKBONE_MULTIPLIER:.3g}",
            f"  to {cfg.OUTPUT_DIR}, where log.txt has all details",
        ):
            logger.info("%s", line)

    def after_step(self) -> None:
        """The line of a step, if it has one."""
        if is_reported(self.trainer):
            logger.info("%s", self._line(self.trainer.iter + 1, self.trainer.max_iter))

    def after_train(self) -> None:
        """Where the weights are, once all steps are done."""
        if self.trainer.start_iter < self.trainer.iter == self.trainer.max_iter:
            path = os.path.join(self.cfg.OUTPUT_DIR, "model_final.pth")
            logger.info("trained: %s", path)

    def _line(self, step: int, last: int) -> str:
        histories = self.trainer.storage.histories()
        loss, rate = histories["total_loss"].median(_PERIOD), histories["lr"].latest()
        epoch = step / self.trainer.steps_an_epoch
        parts = [f"step {step:,} of {last:,}", f"epoch {epoch:.1f}"]
        parts += [f"loss {loss:.4g}", f"rate {rate:.3g}"]
        if "time" in histories:  # not of the first steps, which are slow
            seconds = histories["time"].median(1000)
            left = datetime.timedelta(seconds=round(seconds * (last - step)))
            parts.insert(2, f"{left} left")
            parts.append(f"{self.cfg.SOLVER.IMS_PER_BATCH / seconds:.3g} images/s")
        memory = torch.cuda.max_memory_allocated() or peak_memory()  # 0 without a GPU
        if memory:
            parts.append(f"{memory / 2**30:.1f} GB")
        return "  ".join(parts)


def _batch(solver: CfgNode, processes: int) -> str:
    """How many images make a step, and how they share it out."""
    images, passes = solver.IMS_PER_BATCH, solver.ACCUMULATION_STEPS
    parts = [f"{images // (passes * processes)} a pass"]
    parts += [f"{passes} passes"] * (passes > 1) + [f"{processes} processes"] * (processes > 1)
    return f"{images} image{'s' * (images > 1)}" + (f" ({' x '.join(parts)})" * (len(parts) > 1))


def _numbers(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type.upper()} ({threads} thread{'s' * (threads > 1)})"
