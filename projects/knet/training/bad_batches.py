"""A batch whose losses or gradients are not finite is saved for inspection.

Losses are looked at some steps late, so that nobody waits for a GPU. But which images a batch holds
and how they are augmented depends on the seed and the step alone: the batch is made anew, and none
has to be kept in case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.utils import comm

from knet.checkpoint.write_file import write_torch
from knet.errors import MEANT, one_line
from knet.files import UNFINISHED

if TYPE_CHECKING:
    from knet.training.step import Metrics

__all__ = ["keep_broken"]

_KEPT = 3
_STEP = len("step_0000000")

Batches = Iterable[list[dict[str, Any]]]


def keep_broken(
    folder: str | Path,
    remake: Callable[[int, int], Batches],
    step: Metrics,
    *,
    seed: int,
    parts: int,
) -> str:
    """Save this process's share of the batch of a step to `folder/bad_batches`.

    A file holds `step` (from 1), `seed`, `losses`, `grad_norm`, `file_names` and `batch`, as the
    mapper gives it: read it with `torch.load(path, weights_only=False)`. The newest 3 steps stay.
    A process whose losses and gradients are finite saves nothing.

    Args:
        folder: OUTPUT_DIR.
        remake: (seed, step from 0) -> batches from there on.
        step: that is not finite.
        seed: of the training.
        parts: batches a step.

    Returns:
        A sentence for the user that says where it is, or why it could not be saved; or nothing.
    """
    if np.isfinite([*step.losses.values(), step.grad_norm]).all():
        return ""
    try:
        batch = [sample for part in islice(remake(seed, step.iteration), parts) for sample in part]
        path = _path(Path(folder), step.iteration + 1)
        content = {
            "step": step.iteration + 1,
            "seed": seed,
            "losses": step.losses,
            "grad_norm": step.grad_norm,
            "file_names": [sample.get("file_name") for sample in batch],
            "batch": batch,
        }
        write_torch(path, content)
        _remove_old(path.parent)
    except MEANT as error:  # the error of the step is what has to be told
        return f" Its batch could not be saved: {one_line(error)}."
    return f" Its batch is in {path}."


def _path(folder: Path, step: int) -> Path:
    out = folder / "bad_batches"
    out.mkdir(parents=True, exist_ok=True)
    process = f"_process_{comm.get_rank()}" if comm.get_world_size() > 1 else ""
    return out / f"step_{step:07d}{process}.pth"


def _remove_old(folder: Path) -> None:
    files = [path for path in folder.glob("step_*.pth") if UNFINISHED not in path.name]
    times: dict[str, float] = {}
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            times[path.name[:_STEP]] = max(times.get(path.name[:_STEP], 0), path.stat().st_mtime)
    kept = sorted(times, key=times.__getitem__)[-_KEPT:]
    for path in files:
        if path.name[:_STEP] not in kept:
            path.unlink(missing_ok=True)
