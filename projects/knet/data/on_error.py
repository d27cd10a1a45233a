"""What becomes of records with a defect: refused, or left out and counted.

Some defects are found when the records of a data set are read, others when a picture is, in a
worker process of the loader perhaps.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from knet.data.defects import DataError, Defect, raise_first
from knet.data.records import select
from knet.errors import MEANT, UserError, one_line

logger = logging.getLogger(__name__)

ON_ERROR = ("raise", "skip")
# key of a sample under which a loader process says which records it stands in for
SKIPPED = "skipped_records"
# key of a sample that is none, but (error, stack trace)
_ERROR = "error_of_a_worker"
_EXAMPLES = 3

Batch = list[dict[str, Any]]


@dataclass
class Scan:
    """All records of a data set, usable or not, with what is wrong with its annotations.

    Pictures and label PNGs have not been looked at.
    """

    records: Sequence[dict[str, Any]] = field(default_factory=list)  # in Detectron2's format
    # positions of records that an error makes unusable; they lack what could not be read
    broken: set[int] = field(default_factory=set)
    lost: int = 0  # images without any record, because not even their entry can be read
    defects: Sequence[Defect] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)  # what reading added to the catalog's

    @property
    def left_out(self) -> int:
        """The images that an error makes unusable."""
        return len(self.broken) + self.lost


def check_on_error(on_error: str, where: str) -> str:
    """``on_error`` itself; ValueError if it is no policy."""
    if on_error not in ON_ERROR:
        raise ValueError(f"{where} must be raise or skip, not {on_error!r}")
    return on_error


def usable_records(scan: Scan, on_error: str, name: str) -> Sequence[dict[str, Any]]:
    """The records of a data set under a policy; a warning tells of errors, one of missing labels.

    Raises:
        DataError: under ``raise``, for the first error; it says how many more there are.
    """
    if on_error == "raise":
        raise_first(scan.defects)
    errors = [defect for defect in scan.defects if defect.severity == "error"]
    whole = np.ones(len(scan.records), bool)
    whole[list(scan.broken)] = False
    kept = select(scan.records, whole)
    bare = [defect for defect in scan.defects if defect.kind == "image-without-annotation"]
    if bare:
        logger.warning(
            "data set %r: %d images have no annotation and are not used; an image without any "
            "object needs one with an empty list. The first: %s",
            name,
            len(bare),
            bare[0],
        )
    if errors:
        logger.warning(
            "data set %r: %d errors in its annotations, %d images left out and %d kept "
            "(DATASETS.ON_ERROR is skip; knet check lists all). The first: %s",
            name,
            len(errors),
            scan.left_out,
            len(kept),
            errors[0],
        )
    return kept


def hand_over(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """`function(*arguments)`, a sample; in a worker an error for the user becomes one, too.

    A `DataLoader` puts the stack trace of its worker into the message, and of an error with more
    than a message it keeps nothing else; `raise_handed_over` raises it in the parent as it was.
    """
    try:
        return function(*arguments)
    except MEANT as error:
        if get_worker_info() is None:
            raise
        # others may hold what cannot be sent
        sent = error if isinstance(error, DataError) else UserError(one_line(error))
        return {_ERROR: (sent, traceback.format_exc())}


def raise_handed_over(batches: Iterable[Batch]) -> Iterator[Batch]:
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

    def __iter__(self) -> Iterator[Batch]:
        return raise_handed_over(self.loader)


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
        batches: Iterable[Batch],
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

    def __iter__(self) -> Iterator[Batch]:
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
            "out for another one%s%s%s%s. `knet check` lists every defect",
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
