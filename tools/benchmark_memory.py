"""Peak memory of each side, in a process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch
from benchmark_inputs import Workload, make_material
from benchmark_laps import Laps, peak_memory
from benchmark_ours import Ours
from benchmark_reference import Reference

SIDES = {"ours": Ours, "reference": Reference}


def measure_side(
    side: str,
    work: Workload,
    *,
    large_output: Sequence[int] | None,
    repeats: int,
    threads: int,
) -> dict[str, float]:
    """Bytes above the loaded model, by what is done.

    Every figure is the median of some calls, after one that does not count: it fills caches of
    the libraries, and creates the optimiser's state. What a stage is given, such as the features
    in training, is there before and not counted.

    Args:
        side: a key of `SIDES`.
        work: what to run.
        large_output: (height, width) of one more image with large results; None for none.
        repeats: calls that count.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    runner = SIDES[side](make_material(work), work)

    def peak(run: Callable[[], Any]) -> float:
        run()
        return statistics.median(peak_memory(run, work.device) for _ in range(repeats))

    bytes_of = {"post-processing": peak(partial(runner.post_process, runner.predict()))}
    bytes_of["image"] = peak(lambda: runner.whole(work.output_size))
    if large_output is not None:
        bytes_of["image, large output"] = peak(lambda: runner.whole(large_output))

    def step() -> None:
        runner.training(Laps())
        runner.end_training()

    bytes_of["training step"] = peak(step)
    return bytes_of


def measure_memory(
    work: Workload, *, large_output: Sequence[int] | None, repeats: int
) -> dict[str, dict[str, float]]:
    """What `measure_side` gives for each side; the large output for ours alone.

    The plain implementation would need some 20 GB for 12 megapixels.
    """
    found = {}
    for side in SIDES:
        # a fresh interpreter, so that neither the other side nor this program counts
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            job = pool.submit(
                measure_side,
                side,
                work,
                large_output=large_output if side == "ours" else None,
                repeats=repeats,
                threads=torch.get_num_threads(),
            )
            found[side] = job.result()
    return found
