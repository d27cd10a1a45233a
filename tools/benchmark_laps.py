"""Time, products and memory of the stages of a function."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import knet.accel.winograd  # noqa: F401  (registers operators)

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Laps:
    """A stopwatch that stages report to; this one measures nothing."""

    def restart(self) -> None:
        """Forget what happened since the last stage: preparations."""

    def end(self, stage: str) -> None:
        """The stage that began with the last call ends."""

    @contextlib.contextmanager
    def timing(self, owner: Any, function: str, stage: str) -> Iterator[None]:
        """While open, calls of `owner.function` are a stage of their own."""
        yield


class Counting(Laps):
    """Adds up a growing quantity for every stage."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.stages: dict[str, float] = {}
        self._now = now
        self._last = now()

    def restart(self) -> None:
        self._last = self._now()

    def end(self, stage: str) -> None:
        now = self._now()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now

    @contextlib.contextmanager
    def timing(self, owner: Any, function: str, stage: str) -> Iterator[None]:
        original = getattr(owner, function)
        inner = 0.0

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal inner
            start = self._now()
            result = original(*args, **kwargs)
            inner += self._now() - start
            return result

        setattr(owner, function, counted)
        try:
            yield
        finally:
            if owner.__dict__.get(function) is counted and hasattr(type(owner), function):
                delattr(owner, function)  # a method of the class again
            else:
                setattr(owner, function, original)
        self.stages[stage] = self.stages.get(stage, 0.0) + inner
        self._last += inner  # not the surrounding stage's


def synchronise(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(device: str) -> Counting:
    """A stopwatch of seconds that waits for the GPU at every stage."""

    def now() -> float:
        synchronise(device)
        return time.perf_counter()

    return Counting(now)


def _operations(x: Sequence[int], outputs: int) -> int:
    """Of a 3x3 convolution of maps (B, C, H, W), and of its weights' gradient, as direct sums."""
    return 2 * 9 * math.prod(x) * outputs


_DIRECT_SUMS = {
    torch.ops.aten.baddbmm_: lambda total, a, b, out_shape: 2 * math.prod(a) * b[-1],
    torch.ops.knet.convolve_3x3: lambda x, weight, *_, out_shape: _operations(x, weight[0]),
    torch.ops.knet.convolve_3x3_weight_gradient: lambda x, upstream, out_shape: _operations(
        x, upstream[1]
    ),
}


def products(run: Callable[[Laps], Any]) -> dict[str, float]:
    """Floating point operations of the matrix products and convolutions of every stage.

    A multiplication with its addition counts as two; convolutions count as direct sums, however
    they are computed.
    """
    with FlopCounterMode(display=False, custom_mapping=_DIRECT_SUMS) as counter:
        counting = Counting(lambda: float(counter.get_total_flops()))
        run(counting)
    return counting.stages


def alternate(
    runs: Sequence[Callable[[], dict[str, float]]], repeats: int, between: Callable[[], None]
) -> list[list[dict[str, float]]]:
    """Call several functions in turns, after one round that does not count.

    Whatever slows the machine down for a while so meets all of them alike; every other round goes
    backwards.

    Args:
        runs: functions that give the figures of their stages.
        repeats: rounds.
        between: called before every round.

    Returns:
        For each function, its figures of every round.
    """
    results: list[list[dict[str, float]]] = [[] for _ in runs]
    for repeat in range(-1, repeats):
        between()
        order = range(len(runs)) if repeat % 2 else reversed(range(len(runs)))
        for index in order:
            figures = runs[index]()
            if repeat >= 0:
                results[index].append(figures)
    return results


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


class ProductRate:
    """Operations a second of a float32 matrix product, measured between other work.

    Args:
        device: where.
        size: of the square matrices.
    """

    def __init__(self, device: str, size: int) -> None:
        self.size, self.device = size, device
        self._a, self._b = torch.randn(2, size, size, device=device)
        self.rates: list[float] = []

    def __call__(self) -> None:
        """One more measurement."""
        for _ in range(2):  # the first one warms up
            synchronise(self.device)
            start = time.perf_counter()
            torch.mm(self._a, self._b)
            synchronise(self.device)
            seconds_taken = time.perf_counter() - start
        self.rates.append(2 * self.size**3 / seconds_taken)


def _resident(field: str) -> float:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}: memory can be measured on Linux alone")


def peak_memory(run: Callable[[], Any], device: str) -> float:
    """Bytes by which the highest use of memory during a call exceeds that before it.

    On the GPU what torch allocates; on the CPU the pages of the process that are resident, whose
    high-water mark Linux keeps and lets a process reset. Freed memory goes back to the system
    before, so that it does not hide what the call takes.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text("5", encoding="utf-8")
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before
