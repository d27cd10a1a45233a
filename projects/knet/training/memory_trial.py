"""Training steps of rising size, until memory is short; see `knet.training.batch_size`.

On a CPU a process of its own runs this (`python -m knet.training.memory_trial`), which may fail or
be killed for want of memory. It gives itself a limit below what is free, so that the system, which
might choose another process, has no reason to end any.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from knet.accel import accelerate_as_configured
from knet.errors import is_meant, is_out_of_memory, one_line
from knet.free_memory import free_memory, peak_memory
from knet.training.average import WeightAverage
from knet.training.distribute import check_batch_norm
from knet.training.optimizer import build_optimizer
from knet.training.step import TrainStep, autocast_dtype

__all__ = ["Trial", "attempts"]

# share of the free memory that steps may take. Of a CPU's the rest is for workers of the loader,
# evaluation and pictures; of a GPU's for gaps between the tensors
_SHARE = {"cpu": 0.75, "cuda": 0.9}

Sample = dict[str, Any]


class Trial(NamedTuple):
    """Whether some images pass at a time, with bytes that the process has held at most, or why not.

    A trial that failed is the last one.
    """

    images: int
    peak: float = 0.0
    failure: str = ""


def attempts(cfg: CfgNode, sample: Sample, sizes: Sequence[int], processes: int) -> Iterator[Trial]:
    """Try steps in this process, which a CPU's memory may end.

    Args:
        cfg: of a training; no data set is needed.
        sample: as of the mapper; each image of a batch.
        sizes: numbers of images a pass, rising. The last one is the batch of a step.
        processes: that share the free memory.

    Raises:
        RuntimeError: the first step fails, and not for memory.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run = _steps(cfg, sample, sizes[-1])
    before = _held(device)
    budget = _SHARE.get(device.type, _SHARE["cpu"]) * _free(device) / processes
    if device.type == "cpu" and sys.platform == "linux":
        _limit(int(budget))
    first = True
    for images in sizes:
        try:
            if not run(images):
                continue
        except (MemoryError, RuntimeError) as error:
            out = is_out_of_memory(error)
            if first and not out:
                raise
            # what has worked with fewer images fails for memory, whatever a library calls it
            failure = "ran out of memory" if out else f"failed: {one_line(error)}"
            limit = f" (limit: {(before + budget) / 2**30:.1f} GB)"
            yield Trial(images, failure=failure + limit)
            return
        first = False
        peak = _held(device)
        if peak > before + budget:
            text = f"took {(peak - before) / 2**30:.1f} GB of {budget / 2**30:.1f} GB"
            yield Trial(images, failure=text)
            return
        yield Trial(images, peak=peak)


def _steps(cfg: CfgNode, sample: Sample, most: int) -> Callable[[int], bool]:
    """Runs a step of some images a pass; False if batch norms need more of them."""
    model: Any = accelerate_as_configured(build_model(cfg), cfg).train()
    prepare = getattr(getattr(model, "task", None), "prepare", dict)
    prepared = prepare({**sample})
    images = 0
    step = TrainStep(
        model,
        lambda seed, first: ([prepared] * images for _ in itertools.count()),
        build_optimizer(cfg, model),
        seed=0,
        autocast_dtype=autocast_dtype(cfg),
        clip_norm=1.0,
        average=WeightAverage(model, cfg.SOLVER.EMA) if cfg.SOLVER.EMA else None,
    )

    def run(size: int) -> bool:
        nonlocal images
        try:
            check_batch_norm(model, size)
        except ValueError:
            if size == most:
                raise
            return False
        images = size
        # the gradients of a first part are there while a second one passes
        step.accumulation_steps = 1 if size == most else 2
        for _ in range(1 if step.optimizer.state else 2):  # the second has Adam's moments
            step.iter = 0
            step.run_step()
            step._pending.clear()
        return True

    return run


def _held(device: torch.device) -> float:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_memory()


def _free(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def _limit(budget: int) -> None:
    """Have allocations beyond a budget (bytes from here on) fail; Linux only."""
    import resource

    with open("/proc/self/status", encoding="utf-8") as status:
        held = {line.split(":")[0]: line.split()[1:2] for line in status}
    for kind, key in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        wanted = 1024 * int(held[key][0]) + budget
        soft, hard = resource.getrlimit(kind)
        if soft == resource.RLIM_INFINITY or wanted < soft:
            resource.setrlimit(kind, (wanted, hard))


def main() -> None:
    """Read the arguments of `attempts` from stdin; write each trial as a line of JSON to stdout."""
    # should the system run short all the same, it is this process that it ends; Linux only
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as score:
        score.write(b"1000")
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # libraries may print
        try:
            for trial in attempts(*pickle.load(sys.stdin.buffer)):
                print(json.dumps(trial._asdict()), file=out, flush=True)
        except Exception as error:
            told = {"error": one_line(error), "meant": is_meant(error)}
            print(json.dumps(told), file=out, flush=True)
            raise


if __name__ == "__main__":
    main()
