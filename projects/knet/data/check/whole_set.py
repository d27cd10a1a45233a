"""What is wrong with a data set as a whole, not with one of its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detectron2.data import Metadata

from knet.data.defects import KINDS, Defect, make_defect
from knet.data.labels import IGNORE_LABEL
from knet.errors import first_of

if TYPE_CHECKING:
    from knet.data.check.data_set import DatasetReport

__all__ = ["class_defects", "nothing_to_learn"]


def nothing_to_learn(records: Sequence[Mapping[str, Any]], name: str) -> list[Defect]:
    """The defect of records all of whose annotations are crowds; else none.

    Images without any annotation teach what is no object, so a data set may consist of them.

    Args:
        records: of one or several data sets, without errors.
        name: of them, for messages.
    """
    crowds = 0
    for record in records:
        annotations = record.get("annotations", record.get("segments_info"))
        if annotations is None:
            return []  # semantic label maps
        for annotation in annotations:
            if not annotation.get("iscrowd", 0) or not annotation.get("isthing", True):
                return []
            crowds += 1
    if not crowds:
        return []
    file = str(records[0].get("annotation_file", ""))
    problem = f"all {crowds} annotations of its {len(records)} images are crowds (iscrowd 1)"
    return [make_defect("nothing-to-learn", file, f"data set {name!r}", problem)]


def class_defects(report: DatasetReport, meta: Metadata) -> list[Defect]:
    """Classes that nobody can learn or score, in one defect, and a foreground that is ignored.

    Args:
        report: of a data set without errors, all of whose records have been read.
        meta: of it.
    """
    paths = [meta.get(key) for key in ("panoptic_json", "json_file", "sem_seg_root")]
    file = next((path for path in paths if path), "")
    where, names = f"data set {report.name!r}", report.class_names
    found = []
    absent = [name for name, images in zip(names, report.class_images) if not images]
    if absent:
        problem = f"no label shows {len(absent)} of its {len(names)} classes: {first_of(absent)}"
        found.append(make_defect("class-without-labels", file, where, problem))
    shown = [label for label, images in enumerate(report.class_images) if images]
    if report.ignored and shown in ([], [0]) and len(names) > 1:
        label = str(meta.get("ignore_label", IGNORE_LABEL))
        share = 100 * report.ignored / (report.ignored + sum(report.class_pixels))
        problem = (
            f"label {label}, which is ignored, covers {share:.1f} % of the pixels: all that is not "
            f"{names[0]!r} (class 0)"
        )
        mend = KINDS["ignored-foreground"].mend.replace(f"{IGNORE_LABEL}=", f"{label}=")
        found.append(make_defect("ignored-foreground", file, where, problem, mend=mend))
    return found
