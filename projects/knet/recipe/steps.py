"""How long a training is: epochs that are asked for, or what fits into the time, measured."""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from knet.recipe.choices import Choice, Data, Machine
from knet.training.trainer import Trainer

logger = logging.getLogger(__name__)

_WARM, _TIMED = 3, 6  # steps
_PICTURES = 4  # predicted, for the time of an evaluation
_START_SECONDS = 10.0  # from here to the first step, and for the last words
_RESERVE = 0.06  # of the time, for what is slower than measured
_EVALUATIONS = 4  # in a training, if they take little of its time
_EVALUATION_SHARE, _LARGEST_SHARE = 0.12, 0.25  # of the time; the latter of the first two
# without a limit of time: how often every picture is seen; pictures of all steps, at least and most
_EPOCHS, _LEAST, _MOST = 50, 48_000, 960_000
_STEPS_APART = 50  # of evaluations, at least
CPU_MINUTES = 20.0


@dataclass(frozen=True)
class Cost:
    """Seconds of a training step, and of the evaluation of a picture."""

    step: float
    picture: float


def measure(cfg: CfgNode, processes: int = 1) -> Cost:
    """Train and predict a little, with the data and the model of a config; nothing is kept.

    Args:
        cfg: whose data sets are registered, and whose weights can be read.
        processes: that will train; tried is the share of one.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH //= processes
    with tempfile.TemporaryDirectory() as folder, EventStorage(0) as storage:
        cfg.OUTPUT_DIR = folder
        trainer = Trainer(cfg)
        trainer.checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
        times = []
        trainer.model.train()
        try:
            for step in range(_WARM + _TIMED):
                start = time.perf_counter()
                trainer.iter = trainer._trainer.iter = storage.iter = step
                trainer._trainer.run_step()
                _wait(cfg)
                times.append(time.perf_counter() - start)
        finally:
            if trainer._batches is not None:
                trainer._batches.close()
        trainer.model.eval()
        name = cfg.DATASETS.TEST[0]
        evaluator = trainer.build_evaluator(cfg, name, folder)
        evaluator.reset()
        start, number = time.perf_counter(), 0
        with torch.no_grad():
            for inputs in islice(trainer.build_test_loader(cfg, name), _PICTURES):
                evaluator.process(inputs, trainer.model(inputs))
                number += len(inputs)
        _wait(cfg)
        picture = (time.perf_counter() - start) / max(number, 1)
    return Cost(statistics.median(times[_WARM:]), picture)


def _wait(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda"):
        torch.cuda.synchronize()


def _affordable(scoring: float, seconds: float) -> int:
    """How many evaluations a training of so many seconds has: two show whether it goes up."""
    if 2 * scoring > _LARGEST_SHARE * seconds:
        return 1
    return min(_EVALUATIONS, max(2, int(_EVALUATION_SHARE * seconds / max(scoring, 1e-9))))


def choose_steps(
    data: Data,
    machine: Machine,
    *,
    batch: int,
    epochs: float | None = None,
    minutes: float | None = None,
    cost: Cost | None = None,
    steps: int | None = None,
    elapsed: float = 0.0,
) -> Iterator[Choice]:
    """SOLVER.MAX_ITER and what follows from it.

    Args:
        data: of the training.
        machine: that trains.
        batch: pictures of a step.
        epochs: how often every picture is seen; None: by the time, or by a rule on a GPU.
        minutes: of the whole command; None: CPU_MINUTES on a CPU without `epochs`, else no limit.
        cost: measured; needed for `minutes`.
        steps: as the user wants it.
        elapsed: seconds of the time that have gone by.

    Raises:
        ValueError: the time is too short for a training, or `cost` is missing.
    """
    pictures = len(data.sizes)
    if minutes is None and epochs is None and not machine.on_gpu:
        minutes = CPU_MINUTES
    evaluations = 0
    if steps is not None:
        reason = "as asked for"
    elif epochs is not None:
        steps = max(1, round(epochs * pictures / batch))
        reason = f"{epochs:g} epochs of {pictures:,} pictures, {batch} a step"
    elif minutes is None:
        seen = min(max(_EPOCHS * pictures, _LEAST), _MOST)
        steps = math.ceil(seen / batch)
        reason = f"{seen / pictures:.3g} epochs of {pictures:,} pictures, {batch} a step"
    elif cost is None:
        raise ValueError("steps by time need the measured cost of one")
    else:
        seconds = 60 * minutes * (1 - _RESERVE) - elapsed - _START_SECONDS
        scoring = cost.picture * data.test_pictures
        evaluations = _affordable(scoring, seconds)
        steps = int((seconds - evaluations * scoring) / cost.step)
        if steps < 1:
            raise ValueError(
                f"{minutes:g} minutes are too short: the start takes "
                f"{elapsed + _START_SECONDS:.0f} s, a step {cost.step:.2g} s, scoring "
                f"{data.test_pictures:,} pictures {scoring:.0f} s"
            )
        reason = (
            f"{minutes:g} minutes at {cost.step:.2g} s a step, as measured, with {evaluations} "
            f"evaluation{'s' * (evaluations > 1)} of {scoring:.0f} s"
        )
    yield Choice("SOLVER.MAX_ITER", steps, reason)
    evaluations = evaluations or min(_EVALUATIONS, max(1, steps // _STEPS_APART))
    times = "at the end" if evaluations == 1 else f"{evaluations} times"
    yield Choice("TEST.EVAL_PERIOD", math.ceil(steps / evaluations), times)
    # those before evaluations and every 10 minutes, of which the newest two stay, are enough
    yield Choice("SOLVER.CHECKPOINT_PERIOD", steps + 1, "")
    warmup = max(1, min(100, steps // 20))
    yield Choice("SOLVER.WARMUP_ITERS", warmup, "a twentieth of the steps, 100 at most")
