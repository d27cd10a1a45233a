"""The checkpoint from which a training goes on: the newest one in its folder that is whole.

`last_checkpoint`, which Detectron2 goes by, may be missing or older than the checkpoints after a
kill. So each checkpoint tells itself where it belongs: `run` counts the trainings that were
started in the folder (a resumed one keeps its number), `iteration` its steps. Hence a training
that starts afresh among the files of an earlier, longer one does not go on with those. Its number
is noted when it starts: if it is lost before its first checkpoint, its launcher, which starts it
anew, does not go on with the earlier one.

And what must hold of a training's state before it is saved or gone on with.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.utils import comm
from torch import Tensor

from knet.checkpoint.read_file import peek, read_file
from knet.files import UNFINISHED, write_json

LAST = "last_checkpoint"
_RUN = ".training.run"  # what was begun last


class Newest(NamedTuple):
    """What was found in a folder.

    Attributes:
        path: of the newest whole checkpoint; empty if there is none.
        passed_over: of files that are not whole or lack something, why, a sentence each.
        saved: what the checkpoint holds; None outside of the main process.
        error: why there is none in a folder that should have one.
    """

    path: str = ""
    passed_over: Sequence[str] = ()
    saved: Any = None
    error: str = ""


def find_newest(
    folder: str | Path, parts: Collection[str], *, trust: bool = False, noted: bool = False
) -> Newest:
    """Find the newest checkpoint and check that it is as it was written.

    The main process does so, for all of them.

    Args:
        folder: of a training.
        parts: entries that it must have, such as the state of the trainer.
        trust: as of `read_file`.
        noted: look at checkpoints of the training alone that `note_run` has noted, if one is.

    Raises:
        ValueError: the folder has checkpoints, but none is whole.
    """
    found = Newest()
    if comm.is_main_process():
        only = noted_run(folder).run if noted else None
        found = _find(folder, parts, trust, only)
    shared = comm.all_gather(found._replace(saved=None))[0]
    if shared.error:
        raise ValueError(shared.error)
    return shared._replace(saved=found.saved)


def _find(folder: str | Path, parts: Collection[str], trust: bool, only: int | None) -> Newest:
    candidates, passed_over = [], []
    last = _last(folder)
    for path in _files(folder):
        try:
            saved = peek(path, trust=trust)
        except Exception:  # a damaged file can fail in any way
            try:
                read_file(str(path), trust=trust)  # says what is wrong
            except ValueError as error:
                passed_over.append(str(error))
            continue  # none of ours can be whole and still not be looked into
        run, iteration = _place(saved)
        if iteration is None and run is None:
            continue  # weights alone
        if only is not None and run != only:
            continue
        # without a number of a training, what was tagged is the newest
        tagged = run is None and path.name == last
        final = path.name == "model_final.pth"
        lacking = [part for part in parts if part not in saved]
        order = (run or 0, tagged, -1 if iteration is None else iteration, final)
        candidates.append((order, path, lacking))
    for _, path, lacking in sorted(candidates, reverse=True):
        if lacking:
            passed_over.append(f"{path}: has no {lacking[0]}")
            continue
        try:
            return Newest(str(path), passed_over, read_file(str(path), trust=trust))
        except ValueError as error:
            passed_over.append(str(error))
    if passed_over:
        return Newest(
            error=f"{folder}: no checkpoint there is whole, so there is nothing to resume from: "
            f"{'; '.join(passed_over)}. Put a whole one there, or move these away to start anew"
        )
    if last is not None and only is None:
        return Newest(
            error=f"{folder}: {LAST} is there ({last!r}), but no checkpoint of a training: put it "
            f"back, or remove {LAST} to start anew"
        )
    return Newest()


def last_run(folder: str | Path, *, trust: bool = False) -> int:
    """The highest number of a training among the checkpoints of a folder; 0 without any."""
    runs = [0]
    for path in _files(folder):
        try:
            runs.append(_place(peek(path, trust=trust))[0] or 0)
        except Exception:  # a damaged file, which can fail in any way, is of no training
            continue
    return max(runs)


def note_run(folder: str | Path, *, fresh: bool, job: str = "", trust: bool = False) -> None:
    """Note that a job of a launcher starts a new training in a folder, or goes on with the newest.

    Args:
        folder: of the training.
        fresh: whether it is a new one.
        job: the launcher's name for it; empty without one.
        trust: as of `read_file`.
    """
    run = last_run(folder, trust=trust) + 1 if fresh else None
    write_json(Path(folder, _RUN), {"run": run, "job": job})


class Noted(NamedTuple):
    """What `note_run` has noted: the number of a new training, None: the newest; and the job."""

    run: int | None = None
    job: str | None = None


def noted_run(folder: str | Path) -> Noted:
    """What was noted last; nothing if nothing was.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(folder, _RUN)
    if not path.is_file():
        return Noted()
    try:
        content = json.loads(path.read_bytes())
        run = content["run"]
        return Noted(None if run is None else int(run), str(content["job"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): remove it") from error


def holds_training(folder: str | Path, *, trust: bool = False) -> bool:
    """Whether a training has written checkpoints to a folder."""
    return _last(folder) is not None or last_run(folder, trust=trust) > 0


def _files(folder: str | Path) -> list[Path]:
    return sorted(p for p in Path(folder).glob("*.pth") if p.is_file() and UNFINISHED not in p.name)


def _place(saved: Any) -> tuple[int | None, int | None]:
    """(run, iteration), None where the file does not say."""
    if not isinstance(saved, Mapping):
        return None, None
    trainer = saved.get("trainer")
    inner = trainer.get("iteration") if isinstance(trainer, Mapping) else None
    run, iteration = saved.get("run"), saved.get("iteration", inner)
    return (
        run if isinstance(run, int) else None,
        iteration if isinstance(iteration, int) and trainer is not None else None,
    )


def _last(folder: str | Path) -> str | None:
    """What `last_checkpoint` names, whatever it holds; None without the file."""
    try:
        return (Path(folder) / LAST).read_bytes().decode("utf-8", "replace").strip()[:100]
    except FileNotFoundError:
        return None


def check_state(saved: Any, current: Any, name: str) -> None:
    """Compare the kinds of what two states both have, as far as numbers and containers go.

    Args:
        saved: of a checkpoint.
        current: what the object that gets it has now.
        name: of the object.

    Raises:
        ValueError: naming the first entry of another kind.
    """
    expected: Any = object
    if isinstance(current, Mapping):
        expected = Mapping
    elif isinstance(current, (list, tuple)):
        expected = (list, tuple)
    elif isinstance(current, int) and name.endswith("iteration"):
        expected = int
    elif isinstance(current, (int, float)):  # torch's schedulers keep rates as 0 or 0.0
        expected = (int, float)
    if not isinstance(saved, expected):
        raise ValueError(f"{name} is a {type(saved).__name__}, not a {type(current).__name__}")
    if isinstance(current, Mapping):
        for key in current.keys() & saved.keys():
            check_state(saved[key], current[key], f"{name}.{key}")
    elif isinstance(current, (list, tuple)):
        for i, (theirs, ours) in enumerate(zip(saved, current)):
            check_state(theirs, ours, f"{name}.{i}")


def require_finite_state(data: Mapping[str, Any], path: str) -> None:
    """Refuse to save what cannot be resumed.

    Args:
        data: of a checkpoint.
        path: where it would be written.

    Raises:
        FloatingPointError: naming the first tensor that is not finite.
    """
    for name, value in _tensors(data):
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise FloatingPointError(
                f"{path} is not written: {name.removeprefix('model.')} is not finite (NaN or "
                "infinite), so the training diverged. Lower SOLVER.BASE_LR and go on from the "
                "checkpoint before it with --resume"
            )


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested containers, each with the keys that lead to it, joined by dots."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, (Mapping, list, tuple)):
        parts = state.items() if isinstance(state, Mapping) else enumerate(state)
        for key, value in parts:
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
