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
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from knet.checkpoint.class_names import ClassNames, match_classes

JITTER = 0.01

_KERNELS = ("learned kernels", "learned kernels of training")
_PILOTS = "classes of pilots"
# weights with a row a kernel or class
_PARTS = {
    r"heads\.kernel_head\.init_kernels\.weight": _KERNELS[0],
    r"heads\.training_kernels\.many\.kernels\.weight": _KERNELS[1],
    r"heads\.training_kernels\.pilots\.classes\.weight": _PILOTS,
    r"heads\.rounds\.\d+\.class_predictor\.(weight|bias)": "class predictors",
    r"heads\.kernel_head\.seg_predictor\.(weight|bias)": "semantic branch",
    r"heads\.kernel_head\.classifier\.(weight|bias)": "classifier, the kernels",
    r"heads\.auxiliary\.classifier\.(weight|bias)": "auxiliary classifier",
}


def adaptable_part(name: str) -> str | None:
    """The part that a weight belongs to, if it has a row a class or kernel; else None."""
    return next((part for pattern, part in _PARTS.items() if re.fullmatch(pattern, name)), None)


def adapt_weights(
    state: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    *,
    theirs: ClassNames | None,
    ours: ClassNames | None,
) -> tuple[dict[str, Tensor], str]:
    """Give kernels and rows of classes the shape and order of the model.

    Args:
        state: of the checkpoint, in our names.
        model_state: of the new model, freshly initialised.
        theirs, ours: names of the classes of checkpoint and model, None if not known. Without
            them rows are kept if they are as many, else all are initialised anew.

    Returns:
        The new state, in which all other weights are those of `state`, and a table of what was
        changed, a line a part; empty if nothing was.
    """
    adapted = dict(state)
    changes: dict[str, tuple[str, str, str, str]] = {}
    for name, value in state.items():
        part, target = adaptable_part(name), model_state.get(name)
        if part is None or target is None or not value.numel():
            continue
        if value.dim() != target.dim() or value.shape[1:] != target.shape[1:]:
            continue  # refused by the checkpointer
        old, new = len(value), len(target)
        if part in _KERNELS:
            if old == new:
                continue
            adapted[name] = _fit_kernels(value, new)
            more = f"{old} kept, {new - old} repeated with {JITTER:.0%} noise"
            done = f"the first {new} kept" if new < old else more
        else:
            sides = (_things(theirs), _things(ours)) if part == _PILOTS else (theirs, ours)
            rows, reason = _match(old, new, *sides)
            if rows == list(range(old)):
                continue
            adapted[name] = target.detach().to(value.device, value.dtype, copy=True)
            for i, row in enumerate(rows):
                if row is not None:
                    adapted[name][i] = value[row]
            fresh = [i for i, row in enumerate(rows) if row is None]
            if fresh and not reason and sides[1] is not None:
                reason = ", ".join(sides[1].names[i] for i in fresh[:4])
                reason += " …" if len(fresh) > 4 else ""
            done = f"{new - len(fresh)} rows by class name, {len(fresh)} new"
            done += f": {reason}" if reason else ""
        changes[part] = (part, str(old), str(new), done)
    return adapted, _table(changes.values()) if changes else ""


def _table(rows: Collection[tuple[str, str, str, str]]) -> str:
    lines = [("part", "checkpoint", "model", "what was done"), *rows]
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


def _things(names: ClassNames | None) -> ClassNames | None:
    """Those of things alone; None if they are not known."""
    if names is None or names.num_things is None:
        return None
    return ClassNames(names.names[: names.num_things], names.num_things)


def _match(
    old: int, new: int, theirs: ClassNames | None, ours: ClassNames | None
) -> tuple[list[int | None], str]:
    """For each of the new rows the old one, and why they do not go by name."""
    for side, names, count in (("checkpoint", theirs, old), ("model", ours, new)):
        if names is None or len(names.names) != count:
            reason = f"the {side} has no class names"
            if names is not None:
                reason = f"the {side} names {len(names.names)} classes for {count} rows"
            return (list(range(new)) if old == new else [None] * new), reason
    assert theirs is not None and ours is not None
    return match_classes(theirs, ours), ""
