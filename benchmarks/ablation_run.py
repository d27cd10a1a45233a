"""One training of the ablation, as long as today's recipe takes for given steps, and its scores."""

from __future__ import annotations

import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count, cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
import torch
from ablation_plan import BASE, SCORES, STEPS, Variant, config_of, find_variant
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from knet.config import get_cfg_from_file
from knet.data.custom import register_data_sets
from knet.files import whole_file
from knet.training.average import averaged
from knet.training.console import only_errors
from knet.training.trainer import Trainer

_WARM_UP = 0.05  # of the steps, in which the rate rises
_FIRST, _TIMED_STEPS = 3, 16  # steps that are not timed, and that are
_IMAGES, _TIMED_IMAGES = 8, 40  # different ones, and how many are timed


@dataclass(frozen=True)
class Run:
    """What one row of the table is of.

    Attributes:
        data, variant, seed: what is trained.
        length: of the training; times `STEPS` it is what today's recipe does in the same time.
        threads: of torch.
    """

    data: str
    variant: str
    seed: int
    length: float = 1.0
    threads: int = 1


def run(
    job: Run,
    variant: Variant,
    folder: Path,
    setup: Callable[[], None] | None = None,
    times: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Train and score.

    Args:
        job: what.
        variant: of the job.
        folder: of all runs; weights go below it, from which variants of the same training start.
        setup: is called first, in every process.
        times: of another seed, as `relative_times` gives them; what they lack is measured.

    Returns:
        The row: the job, scores, steps, memory (megabytes that training takes on top of the model),
        times of a step and of an image as shares of today's, and millions of parameters.
    """
    row: dict[str, Any] = _all_times(times or {}, job, variant, folder, setup)
    if setup is not None:
        setup()
    cfg = _config(job, variant, folder)
    weights = _weights(folder, job, variant.trained_as or variant.name)
    with only_errors():
        torch.manual_seed(job.seed)  # of the first weights; the steps draw by cfg.SEED
        trainer = Trainer(cfg)
        if variant.trained_as is None:
            trainer.checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
            steps = max(1, round(job.length * STEPS[job.data] / row["step"]))
            row.update({"steps": steps, "memory_mb": _train(trainer, steps)})
            weights.parent.mkdir(parents=True, exist_ok=True)
            with averaged(trainer._trainer.average), whole_file(weights) as unfinished:
                torch.save(trainer.model.state_dict(), unfinished)
        elif not weights.exists():
            raise FileNotFoundError(
                f"{weights}: {variant.name!r} is scored with the weights of "
                f"{variant.trained_as!r}, which have to be trained here first"
            )
        trainer.model.load_state_dict(torch.load(weights, weights_only=True))
        results = Trainer.test(cfg, trainer.model.eval())
    row["parameters"] = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    row["scores"] = {
        f"{task}/{name}": value
        for task, values in results.items()
        for name, value in values.items()
        if name in ("PQ", "PQ_th", "PQ_st", "SQ", "RQ", "AP", "AP50", "AP75", "APs", "APm", "APl")
    }
    assert SCORES[job.data] in row["scores"], row["scores"]
    return {**asdict(job), **row}


def _all_times(known: Mapping[str, float], *arguments: Any) -> dict[str, float]:
    """Those that are known; where one is not, both are measured, and what is known is kept."""
    if {"step", "test"} <= known.keys():
        return dict(known)
    return {**_apart(relative_times, *arguments), **known}


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, from another process, since this one's peak of memory is the training's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        return other.submit(work, *arguments).result()


def relative_times(
    job: Run, variant: Variant, folder: Path, setup: Callable[[], None] | None = None
) -> dict[str, float]:
    """What a training step, and an image at test, take of `variant` as shares of today's recipe.

    Both are at their first weights, and take turns, as other work on the machine slows both down.
    An image is timed from pixels to results.
    """
    if setup is not None:
        setup()
    if variant.name == BASE:
        return {"step": 1.0, "test": 1.0}
    steps, images = [], []
    with only_errors(), EventStorage(0):
        for each in (find_variant(BASE), variant):
            cfg = _config(job, each, folder)
            trainer = Trainer(cfg)
            trainer.checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
            steps.append(_step_of(trainer))
            images.append(_image_of(trainer))
        return {
            "step": _share(*steps, rounds=_TIMED_STEPS),
            "test": _share(*images, rounds=_TIMED_IMAGES),
        }


def _config(job: Run, variant: Variant, folder: Path) -> CfgNode:
    torch.set_num_threads(job.threads)
    config, opts = config_of(job.data, variant, folder)
    where = folder / job.data / variant.name.replace(" ", "_") / f"{job.seed}"
    with only_errors():
        cfg = get_cfg_from_file(config, [*opts, "SEED", job.seed, "OUTPUT_DIR", str(where)])
        cfg.freeze()
        register_data_sets(cfg)
    return cfg


def _step_of(trainer: Trainer) -> Callable[[], None]:
    numbers = count()

    def step() -> None:
        trainer.model.train()
        trainer.iter = trainer._trainer.iter = next(numbers)
        trainer._trainer.run_step()

    return step


def _image_of(trainer: Trainer) -> Callable[[], None]:
    loader = trainer.build_test_loader(trainer.cfg, trainer.cfg.DATASETS.TEST[0])
    images = cycle(list(islice(loader, _IMAGES)))

    @torch.no_grad()
    def predict() -> None:
        trainer.model.eval()(next(images))

    return predict


def _share(base: Callable[[], None], other: Callable[[], None], *, rounds: int) -> float:
    """Time of `other` by that of `base`, medians over rounds in which both are called."""
    times: dict[Callable[[], None], list[float]] = {base: [], other: []}
    for k in range(_FIRST + rounds):
        for work, taken in times.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if k >= _FIRST:
                taken.append(time.perf_counter() - start)
    return statistics.median(times[other]) / statistics.median(times[base])


def _weights(folder: Path, job: Run, name: str) -> Path:
    length = f"{job.length:g}x{job.threads}"
    return folder / job.data / name.replace(" ", "_") / f"{job.seed}_{length}.pth"


def _train(trainer: Trainer, steps: int) -> float:
    """Steps, in which the rate falls to 0; returns the megabytes that they took."""
    optimizer = trainer.optimizer
    rates = [group["initial_lr"] for group in optimizer.param_groups]
    trainer.model.train()
    gc.collect()
    before = _resident()
    with EventStorage(0) as storage:
        try:
            for step in range(steps):
                share = step / steps
                factor = min(1.0, share / _WARM_UP + 0.01) * (1 + math.cos(math.pi * share)) / 2
                for group, rate in zip(optimizer.param_groups, rates):
                    group["lr"] = rate * factor
                trainer.iter = trainer._trainer.iter = storage.iter = step
                trainer._trainer.run_step()
            trainer._trainer.require_finite()
        finally:
            if trainer._batches is not None:
                trainer._batches.close()
    return _peak() - before


def _resident() -> float:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def _peak() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
