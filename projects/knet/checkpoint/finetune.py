"""Weights of a model with other classes or another number of kernels, brought to a new model.

Learned kernels: the first ones are kept. Where the new model has more, they are repeated from the
first on; the repeated ones get Gaussian noise of 1% of the kernels' standard deviation, since
exact copies would find the same objects and only differ once the matching picks one of them.

Rows of classes go by name, see `match_classes`; classes that are not found keep what the new model
was initialised with. The rows of stuff classes in the semantic branch are the stuff kernels, and
in a semantic model the classifier's rows are the kernels, so they come along.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from knet.checkpoint.class_names import ClassNames, match_classes

JITTER = 0.01

_KERNELS = "heads.kernel_head.init_kernels.weight"
_CLASS_PARTS = {
    r"heads\.rounds\.\d+\.class_predictor\.(weight|bias)": "class predictors",
    r"heads\.kernel_head\.seg_predictor\.(weight|bias)": "semantic branch",
    r"heads\.kernel_head\.classifier\.(weight|bias)": "classifier, the kernels",
    r"heads\.auxiliary\.classifier\.(weight|bias)": "auxiliary classifier",
}


class Change(NamedTuple):
    """A line of the table.

    Attributes:
        part: what was adapted.
        theirs, ours: its number of rows in the checkpoint and in the model.
        done: how, in words.
    """

    part: str
    theirs: int
    ours: int
    done: str


def adapt_weights(
    state: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    *,
    theirs: ClassNames | None,
    ours: ClassNames | None,
) -> tuple[dict[str, Tensor], list[Change]]:
    """Give kernels and rows of classes the shape and order of the model.

    Args:
        state: of the checkpoint, in our names.
        model_state: of the new model, freshly initialised.
        theirs, ours: names of the classes of checkpoint and model, None if not known. Without
            them rows are kept if they are as many, else all are initialised anew.

    Returns:
        The new state, in which all other weights are those of `state`, and what was changed; if
        nothing was, an empty list.
    """
    adapted = dict(state)
    changes: dict[str, Change] = {}
    for name, value in state.items():
        target = model_state.get(name)
        if (
            target is None
            or value.dim() != target.dim()
            or value.shape[1:] != target.shape[1:]
            or not value.numel()
        ):
            continue  # refused or reported by the checkpointer
        if name == _KERNELS:
            if len(value) != len(target):
                adapted[name] = _fit_kernels(value, len(target))
                changes[name] = _kernel_change(len(value), len(target))
            continue
        for pattern, part in _CLASS_PARTS.items():
            if not re.fullmatch(pattern, name):
                continue
            rows, why = _match(len(value), len(target), theirs, ours)
            if rows != list(range(len(value))):
                adapted[name] = _take_rows(value, target, rows)
                changes[part] = _class_change(part, len(value), rows, why, ours)
    return adapted, list(changes.values())


def is_adaptable(name: str) -> bool:
    """Whether the weight has a row a class or kernel, so that `adapt_weights` can fit it."""
    return name == _KERNELS or any(re.fullmatch(pattern, name) for pattern in _CLASS_PARTS)


def format_changes(changes: Sequence[Change]) -> str:
    """A table of a few lines."""
    head = ("part", "checkpoint", "model", "what was done")
    lines = [head, *((c.part, str(c.theirs), str(c.ours), c.done) for c in changes)]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return "\n".join(
        f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in lines
    )


def _fit_kernels(kernels: Tensor, count: int) -> Tensor:
    if count <= len(kernels):
        return kernels[:count].clone()
    repeats = -(-count // len(kernels))
    fitted = kernels.repeat(repeats, *[1] * (kernels.dim() - 1))[:count]
    # the same in every process of a training
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(fitted.shape, generator=generator).to(fitted)
    noise[: len(kernels)] = 0
    return fitted + JITTER * kernels.std() * noise


def _kernel_change(theirs: int, ours: int) -> Change:
    if ours <= theirs:
        done = f"the first {ours} kept"
    else:
        done = f"{theirs} kept, {ours - theirs} repeated with {JITTER:.0%} noise"
    return Change("learned kernels", theirs, ours, done)


def _match(
    theirs_rows: int, ours_rows: int, theirs: ClassNames | None, ours: ClassNames | None
) -> tuple[list[int | None], str]:
    reason = ""
    for side, names, rows in (("checkpoint", theirs, theirs_rows), ("model", ours, ours_rows)):
        if names is None:
            reason = reason or f"the {side} has no class names"
        elif len(names.names) != rows:
            reason = reason or f"the {side} names {len(names.names)} classes for {rows} rows"
    if reason:
        kept: list[int | None] = list(range(ours_rows))
        return (kept if theirs_rows == ours_rows else [None] * ours_rows), reason
    assert theirs is not None and ours is not None
    return match_classes(theirs, ours), ""


def _take_rows(value: Tensor, target: Tensor, rows: Sequence[int | None]) -> Tensor:
    fitted = target.detach().to(value.device, value.dtype, copy=True)
    for i, row in enumerate(rows):
        if row is not None:
            fitted[i] = value[row]
    return fitted


def _class_change(
    part: str, theirs: int, rows: Sequence[int | None], why: str, ours: ClassNames | None
) -> Change:
    fresh = [i for i, row in enumerate(rows) if row is None]
    done = f"{len(rows) - len(fresh)} rows by class name, {len(fresh)} new"
    if why:
        done += f": {why}"
    elif fresh and ours is not None:
        names = [ours.names[i] for i in fresh]
        done += f": {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
    return Change(part, theirs, len(rows), done)
