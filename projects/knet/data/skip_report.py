"""Counts the records that training had to leave out, and says so once an epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["SKIPPED", "SkipReport"]

logger = logging.getLogger(__name__)

# key of a sample under which a loader process says which records it stands in for
SKIPPED = "skipped_records"
_EXAMPLES = 3


class SkipReport:
    """Passes batches on and reports what was skipped on the way.

    The first record is reported at once; then, at the end of each epoch in which any was skipped
    and of the training (`close`), their number and the first of them. Each process counts its own.

    Args:
        batches: of this process; the samples may have a list of messages under `SKIPPED`.
        epoch_size: number of samples of this process in an epoch.
    """

    def __init__(self, batches: Iterable[list[dict[str, Any]]], *, epoch_size: int) -> None:
        self.batches = batches
        self.epoch_size = max(1, epoch_size)
        self.total = 0
        self._epoch: list[str] = []

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        seen = 0
        for batch in self.batches:
            for sample in batch:
                self._count(sample.pop(SKIPPED, ()))
            seen += len(batch)
            if seen >= self.epoch_size:
                seen -= self.epoch_size
                self._report("this epoch")
            yield batch

    def close(self) -> None:
        """Report what has been skipped since the last epoch ended."""
        self._report("the last, unfinished epoch")

    def _count(self, messages: Iterable[str]) -> None:
        for message in messages:
            if not self.total:
                logger.warning(
                    "left out of the training: %s. Others are counted and reported once an epoch "
                    "(DATASETS.ON_ERROR is skip)",
                    message,
                )
            self.total += 1
            self._epoch.append(message)

    def _report(self, when: str) -> None:
        if not self._epoch:
            return
        distinct = list(dict.fromkeys(self._epoch))
        shown = "; ".join(distinct[:_EXAMPLES])
        rest = len(distinct) - _EXAMPLES
        logger.warning(
            "%d times in %s (%d samples in each), %d since the start, a record was left out for "
            "another one: %s%s. `python tools/check_dataset.py` lists every defect",
            len(self._epoch),
            when,
            self.epoch_size,
            self.total,
            shown,
            f"; and {rest} more" if rest > 0 else "",
        )
        self._epoch.clear()
