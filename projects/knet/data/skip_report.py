"""Counts the records that training had to leave out, and says so once an epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from knet.data.worker_errors import raise_handed_over

__all__ = ["SKIPPED", "SkipReport"]

logger = logging.getLogger(__name__)

# key of a sample under which a loader process says which records it stands in for
SKIPPED = "skipped_records"
_EXAMPLES = 3


class SkipReport:
    """Passes batches on and reports what was skipped on the way.

    The first record is reported at once; then, at the end of each epoch in which any was skipped
    and of the training (`close`), their number and the first of them. Each process counts its own.
    Images that were left out when the data were loaded are in each report.

    Args:
        batches: of this process; the samples may have a list of messages under `SKIPPED`.
        epoch_size: number of samples of this process in an epoch.
        left_out: number of images that the records lack already.
        start: number of samples of this process before the first batch, in a resumed training.
        processes: that train together.
    """

    def __init__(
        self,
        batches: Iterable[list[dict[str, Any]]],
        *,
        epoch_size: int,
        left_out: int = 0,
        start: int = 0,
        processes: int = 1,
    ) -> None:
        self.batches = batches
        self.epoch_size = max(1, epoch_size)
        self.left_out = left_out
        self.processes = processes
        self.total = 0
        self._epoch: list[str] = []
        self._seen = start % self.epoch_size
        self._unreported = 0  # samples since the last report

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in raise_handed_over(self.batches):
            for sample in batch:
                self._count(sample.pop(SKIPPED, ()))
            self._seen += len(batch)
            self._unreported += len(batch)
            if self._seen >= self.epoch_size:
                self._seen %= self.epoch_size
                self._report("this epoch")
            yield batch

    def close(self) -> None:
        """Report what has been skipped since the last epoch ended."""
        if self._unreported:
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
        self._unreported = 0
        if not self._epoch and not self.left_out:
            return
        distinct = list(dict.fromkeys(self._epoch))
        shown = ": " + "; ".join(distinct[:_EXAMPLES]) if distinct else ""
        rest = len(distinct) - _EXAMPLES
        logger.warning(
            "%d times in %s (%d samples in each), %d since this process started, a record was left "
            "out for another one%s%s%s%s. `python tools/check_dataset.py` lists every defect",
            len(self._epoch),
            when,
            self.epoch_size,
            self.total,
            f" (one process of {self.processes})" if self.processes > 1 else "",
            shown,
            f"; and {rest} more" if rest > 0 else "",
            f". {self.left_out} images were left out at loading" if self.left_out else "",
        )
        self._epoch.clear()
