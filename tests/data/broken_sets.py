"""Data sets with exactly one defect each, for the tests of the checker and of the loader.

``make_broken(case, folder)`` writes one of ``CASES`` and gives its entry for ``DATASETS.CUSTOM``,
with absolute paths; ``make_good(form, folder)`` one without a defect.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .breaking import Case
from .broken_instances import INSTANCE_CASES
from .broken_labels import PANOPTIC_CASES, SEMANTIC_CASES
from .good_sets import FORMATS, NUM_IMAGES, finish, make_good, start

__all__ = ["CASES", "FORMATS", "NUM_IMAGES", "Case", "make_broken", "make_good"]

CASES = [*INSTANCE_CASES, *PANOPTIC_CASES, *SEMANTIC_CASES]


def make_broken(case: Case, folder: Path) -> dict[str, Any]:
    """Writes the data set of a case; its entry for ``DATASETS.CUSTOM``."""
    files = start(case.form, folder)
    case.break_it(files)
    return finish(files, case.name.replace("-", "_"))
