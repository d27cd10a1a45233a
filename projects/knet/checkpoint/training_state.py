"""Whether the state of a training can be resumed, and is of this training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def check_state(saved: Any, current: Any, name: str) -> None:
    """Compare the kinds of what two states both have, as far as numbers and containers go.

    Args:
        saved: of a checkpoint.
        current: what the object that gets it has now.
        name: of the object.

    Raises:
        ValueError: naming the first entry of another kind.
    """
    expected: Any = None
    if isinstance(current, Mapping):
        expected = Mapping
    elif isinstance(current, (list, tuple)):
        expected = (list, tuple)
    elif isinstance(current, int):
        # a count; but torch's schedulers keep rates as 0 or 0.0
        expected = int if name.endswith("iteration") else (int, float)
    elif isinstance(current, float):
        expected = (int, float)
    if expected is not None and not isinstance(saved, expected):
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
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, (list, tuple)):
        for i, value in enumerate(state):
            yield from _tensors(value, f"{name}.{i}")
