"""One training of the ablation, of a given time rather than of given steps, and its scores."""

from __future__ import annotations

import gc
import math
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
import torch
from ablation_plan import SCORES, Variant, config_of
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from knet.config import get_cfg_from_file
from knet.data.custom import register_builtin, register_custom
from knet.files import whole_file
from knet.training.average import averaged
from knet.training.console import only_errors
from knet.training.trainer import Trainer

_WARM_UP = 0.05  # of the time, in which the rate rises
_TIMED_IMAGES, _TIMED_ROUNDS = 12, 3


@dataclass(frozen=True)
class Run:
    """What one row of the table is of.

    Attributes:
        data, variant, seed: what is trained.
        minutes: of the training, without its preparation and its evaluation.
        threads: of torch. With one, minutes are those of the processor, which other programs on
            the machine do not shorten; else, and on a GPU, those of the clock.
    """

    data: str
    variant: str
    seed: int
    minutes: float
    threads: int = 1


def run(job: Run, variant: Variant, folder: Path) -> dict[str, Any]:
    """Train and score.

    Args:
        job: what.
        variant: of the job.
        folder: of all runs; weights go below it, from which variants of the same training start.

    Returns:
        The row: the job, scores, steps, memory (megabytes that training takes on top of the model),
        milliseconds an image at test, and millions of parameters.
    """
    torch.set_num_threads(job.threads)
    config, opts = config_of(job.data, variant, folder)
    where = folder / job.data / variant.name.replace(" ", "_") / f"{job.seed}"
    opts += ["SEED", job.seed, "OUTPUT_DIR", str(where)]
    with only_errors():
        cfg = get_cfg_from_file(config, opts)
        cfg.freeze()
        register_builtin([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        register_custom(cfg)
        row = _run(cfg, job, variant, folder)
    return {**asdict(job), **row}


def _run(cfg: CfgNode, job: Run, variant: Variant, folder: Path) -> dict[str, Any]:
    clock = _clock(cfg, job)
    weights = _weights(folder, job, variant.trained_as or variant.name)
    torch.manual_seed(job.seed)  # of the first weights; the steps draw by cfg.SEED
    trainer = Trainer(cfg)
    row: dict[str, Any] = {}
    if variant.trained_as is None:
        trainer.checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
        row = _train(trainer, job.minutes, clock)
        average = trainer._trainer.average
        with averaged(average):
            weights.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(weights) as unfinished:
                torch.save(trainer.model.state_dict(), unfinished)
    elif not weights.exists():
        raise FileNotFoundError(
            f"{weights}: {variant.name!r} is scored with the weights of {variant.trained_as!r}, "
            "which have to be trained here first"
        )
    trainer.model.load_state_dict(torch.load(weights, weights_only=True))
    trainer.model.eval()
    row["parameters"] = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    results = Trainer.test(cfg, trainer.model)
    row["scores"] = {
        f"{task}/{name}": value
        for task, values in results.items()
        for name, value in values.items()
        if name in ("PQ", "PQ_th", "PQ_st", "SQ", "RQ", "AP", "AP50", "AP75", "APs", "APm", "APl")
    }
    assert SCORES[job.data] in row["scores"], row["scores"]
    row["test_ms"] = _milliseconds(cfg, trainer, clock)
    return row


def _clock(cfg: CfgNode, job: Run) -> Callable[[], float]:
    return (
        time.process_time if cfg.MODEL.DEVICE == "cpu" and job.threads == 1 else time.perf_counter
    )


def _weights(folder: Path, job: Run, name: str) -> Path:
    length = f"{job.minutes:g}x{job.threads}"
    return folder / job.data / name.replace(" ", "_") / f"{job.seed}_{length}.pth"


def _train(trainer: Trainer, minutes: float, clock: Callable[[], float]) -> dict[str, Any]:
    """Steps until the time is over, with which the rate falls to 0, whatever a step takes."""
    optimizer, seconds = trainer.optimizer, 60 * minutes
    rates = [group["initial_lr"] for group in optimizer.param_groups]
    trainer.model.train()
    gc.collect()
    before, step = _resident(), 0
    start = clock()
    with EventStorage(0) as storage:
        try:
            while (share := (clock() - start) / seconds) < 1:
                factor = min(1.0, share / _WARM_UP + 0.01) * (1 + math.cos(math.pi * share)) / 2
                for group, rate in zip(optimizer.param_groups, rates):
                    group["lr"] = rate * factor
                trainer.iter = trainer._trainer.iter = storage.iter = step
                trainer._trainer.run_step()
                step += 1
            trainer._trainer.require_finite()
        finally:
            if trainer._batches is not None:
                trainer._batches.close()
    return {"steps": step, "memory_mb": _peak(trainer) - before}


def _resident() -> float:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def _peak(trainer: Trainer) -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def _milliseconds(cfg: CfgNode, trainer: Trainer, clock: Callable[[], float]) -> float:
    """Of an image at test, from pixels to results: the median over some, each the best of three."""
    loader = trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    images = list(islice(loader, _TIMED_IMAGES))
    best = [math.inf] * len(images)
    for _ in range(_TIMED_ROUNDS):
        for index, inputs in enumerate(images):
            start = clock()
            trainer.model(inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[index] = min(best[index], clock() - start)
    return 1000 * statistics.median(best)
