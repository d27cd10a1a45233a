"""Whether the files of a training are whole, and the same as those of another one."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from knet.files import UNFINISHED


def read_output(folder: Path) -> dict[str, Any]:
    """Content of every file of a finished training, by name; files of logs are only checked.

    Raises:
        Exception: of any kind, for a file that is not whole.
    """
    content: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if ".tfevents." in name:
            continue  # one a start
        content[name] = None
        try:
            if path.suffix == ".pth":
                content[name] = torch.load(path, weights_only=False)
            elif path.name == "metrics.json":
                for line in path.read_text().splitlines():
                    json.loads(line)
            elif path.suffix == ".json":
                content[name] = json.loads(path.read_text())
            elif path.name == "last_checkpoint":
                content[name] = path.read_text()
        except Exception as error:
            raise ValueError(f"{name} is not whole: {type(error).__name__}: {error}") from error
    return content


def saved_steps(folder: Path) -> int:
    """Steps that the newest whole checkpoint holds; 0 without one."""
    steps = [0]
    for path in folder.glob("model_*.pth"):
        with contextlib.suppress(Exception):  # not whole
            if UNFINISHED not in path.name:
                steps.append(torch.load(path, weights_only=False)["iteration"] + 1)
    return max(steps)


def difference(ours: Any, theirs: Any, where: str = "") -> str:
    """The first place where two contents differ, or nothing."""
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return "" if torch.equal(ours, theirs) else where
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return f"{where}: {sorted(map(str, ours.keys() ^ theirs.keys()))} in one only"
        parts: Any = ((ours[key], theirs[key], f"{where}/{key}") for key in ours)
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs):
            return f"{where}: {len(ours)} and {len(theirs)} values"
        parts = ((a, b, f"{where}/{i}") for i, (a, b) in enumerate(zip(ours, theirs)))
    else:
        return "" if bool(ours == theirs) else f"{where}: {str(ours)[:80]} and {str(theirs)[:80]}"
    return next(filter(None, (difference(*part) for part in parts)), "")
