"""What becomes of records with a defect: refused, or left out and counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from detectron2.data import DatasetCatalog

from knet.data.defects import Defect, raise_first
from knet.data.registration.catalog import register_loader

__all__ = [
    "ON_ERROR",
    "Scan",
    "check_on_error",
    "left_out",
    "register_scan",
    "scan_dataset",
    "set_on_error",
    "usable_records",
]

logger = logging.getLogger(__name__)

ON_ERROR = ("raise", "skip")


@dataclass
class Scan:
    """All records of a data set, usable or not, with what is wrong with them.

    Attributes:
        records: in Detectron2's format. Those of ``broken`` lack what could not be read.
        broken: the positions of records that an error makes unusable.
        lost: the number of images without any record, because not even their entry can be read.
        defects: of the annotation files; pictures and masks have not been looked at.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)
    lost: int = 0
    defects: list[Defect] = field(default_factory=list)


# The policy is no part of what a data set is: it may be changed after the registration.
_on_error: dict[str, str] = {}
# with the loader that reads the same: others may register a name anew
_scanners: dict[str, tuple[Callable[[], list[dict[str, Any]]], Callable[[], Scan]]] = {}
_left_out: dict[str, int] = {}


def check_on_error(on_error: str, where: str) -> str:
    """``on_error`` itself; ValueError if it is no policy."""
    if on_error not in ON_ERROR:
        raise ValueError(f"{where} must be raise or skip, not {on_error!r}")
    return on_error


def set_on_error(name: str, on_error: str) -> None:
    """Sets the policy of a data set; it holds from the next time that its records are read."""
    _on_error[name] = check_on_error(on_error, f"data set {name!r}: on_error")


def register_scan(name: str, arguments: dict[str, Any], scan: Callable[[], Scan]) -> None:
    """Registers a data set whose records are those of a scan, under the policy of its name."""

    def load() -> list[dict[str, Any]]:
        return usable_records(scan(), _on_error[name], name)

    register_loader(name, arguments, load)
    _scanners[name] = (load, scan)


def scan_dataset(name: str) -> Scan | None:
    """Every record and defect of a data set registered here; None for those of others."""
    load, scan = _scanners.get(name, (None, None))
    if scan is None or name not in DatasetCatalog or DatasetCatalog[name] is not load:
        return None
    return scan()


def left_out(names: Iterable[str]) -> int:
    """The images that data sets lost to errors when their records were last read."""
    return sum(_left_out.get(name, 0) for name in names)


def usable_records(scan: Scan, on_error: str, name: str) -> list[dict[str, Any]]:
    """The records of a scan under a policy; one warning tells of errors, one of missing labels.

    Args:
        scan: of the data set.
        on_error: ``raise`` or ``skip``.
        name: of the data set, for the log.

    Raises:
        DataError: under ``raise``, for the first error; it says how many more there are.
    """
    if on_error == "raise":
        raise_first(scan.defects)
    errors = [defect for defect in scan.defects if defect.severity == "error"]
    kept = [record for index, record in enumerate(scan.records) if index not in scan.broken]
    _left_out[name] = len(scan.broken) + scan.lost
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
            "(DATASETS.ON_ERROR is skip; tools/check_dataset.py lists all). The first: %s",
            name,
            len(errors),
            _left_out[name],
            len(kept),
            errors[0],
        )
    return kept
