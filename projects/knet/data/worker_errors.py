"""Errors of a DataLoader's workers, raised in the parent as they were raised there.

A `DataLoader` puts the stack trace of its worker into the message; and of an error with more than a
message it keeps nothing else. So a worker hands the error over in place of a sample.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import get_worker_info

from knet.data.defects import DataError
from knet.errors import MEANT, UserError, one_line

__all__ = ["RaisingLoader", "hand_over", "raise_handed_over"]

# key of a sample that is none, but (error, stack trace)
_ERROR = "error_of_a_worker"


def hand_over(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """`function(*arguments)`, a sample; in a worker an error for the user becomes one, too."""
    try:
        return function(*arguments)
    except MEANT as error:
        if get_worker_info() is None:
            raise
        # others may hold what cannot be sent
        sent = error if isinstance(error, DataError) else UserError(one_line(error))
        return {_ERROR: (sent, traceback.format_exc())}


def raise_handed_over(batches: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """The batches; raises the first error of a worker among their samples, caused by its trace."""
    for batch in batches:
        for sample in batch:
            if _ERROR in sample:
                error, trace = sample[_ERROR]
                raise error from RuntimeError(f"in a worker process of the loader\n{trace}")
        yield batch


class RaisingLoader:
    """A loader with a length whose workers hand errors over."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return raise_handed_over(self.loader)
