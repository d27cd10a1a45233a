"""The checkpoint from which a training goes on: the newest one in its folder that is whole.

`last_checkpoint`, which Detectron2 goes by, may be missing or older than the checkpoints after a
kill. So each checkpoint tells itself where it belongs: `run` counts the trainings that were
started in the folder (a resumed one keeps its number), `iteration` its steps. Hence a training
that starts afresh among the files of an earlier, longer one does not go on with those.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.utils import comm

from knet.checkpoint.allowed_globals import torch_globals
from knet.checkpoint.read_file import read_file
from knet.files import UNFINISHED

LAST = "last_checkpoint"


class Newest(NamedTuple):
    """What `newest_whole` found.

    Attributes:
        path: of the checkpoint; empty if the folder has none.
        passed_over: of files that are not whole or lack something, why, a sentence each.
    """

    path: str
    passed_over: list[str]


def newest_for_all(folder: str | Path, parts: Collection[str], *, trust: bool = False) -> Newest:
    """`newest_whole` of the main process, in all of them; so is its error."""
    found: Newest | ValueError = Newest("", [])
    if comm.is_main_process():
        try:
            found = newest_whole(folder, parts, trust=trust)
        except ValueError as error:
            found = error
    found = comm.all_gather(found)[0]
    if isinstance(found, ValueError):
        raise found
    return found


def newest_whole(folder: str | Path, parts: Collection[str], *, trust: bool = False) -> Newest:
    """Find the newest checkpoint and check that it is as it was written.

    Args:
        folder: of a training.
        parts: entries that it must have, such as the state of the trainer.
        trust: as of `read_file`.

    Raises:
        ValueError: the folder has checkpoints, but none is whole.
    """
    places = []
    passed_over: list[str] = []
    last = _last(folder)
    for path in _files(folder):
        try:
            saved = _peek(path, trust)
        except Exception:  # a damaged file can fail in any way
            # none of ours can be whole and still not be looked into
            passed_over += filter(None, [_reason(path, trust)])
            continue
        run, iteration = _place(saved)
        if iteration is None and run is None:
            continue  # weights alone
        # without a number of a training, what was tagged is the newest
        tagged = run is None and path.name == last
        final = path.name == "model_final.pth"
        lacking = [part for part in parts if part not in saved]
        order = (run or 0, tagged, -1 if iteration is None else iteration, final)
        places.append((order, path, lacking))
    for _, path, lacking in sorted(places, reverse=True):
        reason = f"{path}: has no {lacking[0]}" if lacking else _reason(path, trust)
        if not reason:
            return Newest(str(path), passed_over)
        passed_over.append(reason)
    if passed_over:
        raise ValueError(
            f"{folder}: no checkpoint there is whole, so there is nothing to resume from: "
            f"{'; '.join(passed_over)}. Put a whole one there, or move these away to start anew"
        )
    if last is not None:
        raise ValueError(
            f"{folder}: {LAST} is there ({last!r}), but no checkpoint of a training: put it back, "
            f"or remove {LAST} to start anew"
        )
    return Newest("", [])


def last_run(folder: str | Path, *, trust: bool = False) -> int:
    """The highest number of a training among the checkpoints of a folder; 0 without any."""
    runs = [0]
    for path in _files(folder):
        try:
            run, _ = _place(_peek(path, trust))
        except Exception:  # a damaged file, which can fail in any way, is of no training
            continue
        runs.append(run or 0)
    return max(runs)


def holds_training(folder: str | Path, *, trust: bool = False) -> bool:
    """Whether a training has written checkpoints to a folder."""
    return _last(folder) is not None or last_run(folder, trust=trust) > 0


def _files(folder: str | Path) -> list[Path]:
    return sorted(p for p in Path(folder).glob("*.pth") if p.is_file() and UNFINISHED not in p.name)


def _peek(path: Path, trust: bool) -> Mapping[Any, Any]:
    """A checkpoint whose tensors are not read."""
    if path.stat().st_size == 0:
        raise ValueError("empty")
    with torch.serialization.safe_globals(torch_globals()):
        saved = torch.load(path, map_location="cpu", weights_only=not trust, mmap=True)
    return saved if isinstance(saved, Mapping) else {}


def _place(saved: Mapping[Any, Any]) -> tuple[int | None, int | None]:
    """(run, iteration), None where the file does not say."""
    trainer = saved.get("trainer")
    inner = trainer.get("iteration") if isinstance(trainer, Mapping) else None
    run, iteration = saved.get("run"), saved.get("iteration", inner)
    return (
        run if isinstance(run, int) else None,
        iteration if isinstance(iteration, int) and trainer is not None else None,
    )


def _reason(path: Path, trust: bool) -> str:
    """Why a file is not whole; empty if it is."""
    try:
        read_file(str(path), trust=trust)
    except ValueError as error:
        return str(error)
    return ""


def _last(folder: str | Path) -> str | None:
    """What `last_checkpoint` names, whatever it holds; None without the file."""
    try:
        return (Path(folder) / LAST).read_bytes().decode("utf-8", "replace").strip()[:100]
    except FileNotFoundError:
        return None
