"""What can be wrong with a data set: kinds of defects, and the error that carries one.

The loader, the mapper and ``tools/check_dataset.py`` build every defect here, so that they agree
on what is an error and on how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data.detection_utils import SizeMismatchError

__all__ = [
    "KINDS",
    "DataError",
    "Defect",
    "MissingFileError",
    "data_error",
    "describe",
    "make_defect",
    "raise_first",
]


@dataclass(frozen=True)
class Kind:
    """A kind of defect: ``error`` (cannot be trained on) or ``warning``, and how to mend it."""

    severity: str
    mend: str


_REMAKE = "restore the file from its source, or remove it and its annotations"
_POINTS = "a polygon is a list [x0, y0, x1, y1, …] of three or more points"

KINDS: Mapping[str, Kind] = {
    # annotation files
    "no-images": Kind("error", "list the pictures under `images`, each with id and file_name"),
    "mixed-image-ids": Kind(
        "error", "write all ids as numbers, or all as text: COCO's evaluation cannot sort them"
    ),
    "json-invalid": Kind("error", "write the file again as one JSON object in COCO's format"),
    "missing-key": Kind("error", "add the key"),
    "bad-value": Kind("error", "correct the value"),
    "no-categories": Kind("error", "list the classes under `categories`, each with id and name"),
    "duplicate-category": Kind("error", "give every category an id of its own"),
    "duplicate-category-name": Kind("warning", "give every category a name of its own"),
    "unknown-category": Kind("error", "add the category to `categories`, or correct its id"),
    "duplicate-image-id": Kind("error", "give every image an id of its own"),
    "duplicate-annotation-id": Kind("error", "give every annotation an id of its own"),
    "duplicate-segment-id": Kind("error", "give every segment of an image an id of its own"),
    "duplicate-annotation": Kind("error", "merge them, so that each image has one annotation"),
    "annotation-id-zero": Kind("warning", "count from 1: COCO's evaluation reads 0 as `no match`"),
    "segment-id-zero": Kind("error", "give it another id: 0 marks void pixels"),
    "orphan-annotation": Kind("error", "add the image, correct the id, or remove the annotation"),
    "shared-file": Kind("warning", "give every image a file of its own, or merge their entries"),
    "image-without-annotation": Kind("warning", "annotate it; it is not used as it is"),
    "same-object-twice": Kind("warning", "remove one: two right answers would be one false one"),
    "nothing-to-learn": Kind(
        "error", "annotate objects one by one with `iscrowd: 0`; crowds are left out of training"
    ),
    "class-without-labels": Kind(
        "warning", "label it, or remove it from the classes; scores are those of the other classes"
    ),
    "ignore-flag": Kind("error", "write `iscrowd: 1`, or remove the annotation"),
    # pictures
    "image-missing": Kind("error", "correct the name or the folder, or remove the record"),
    "image-unreadable": Kind("error", _REMAKE),
    "image-truncated": Kind("error", _REMAKE),
    "image-too-large": Kind(
        "error", "scale it down or cut it into tiles, or raise INPUT.MAX_PIXELS in the config"
    ),
    "size-mismatch": Kind("error", "use the picture that was annotated, or correct the size"),
    "exif-rotation": Kind(
        "warning",
        "turn the pixels for good and remove the tag (ImageOps.exif_transpose of Pillow), then "
        "look whether the annotations fit",
    ),
    "image-depth": Kind("error", "scale its values to 0 … 255 and save it with 8 bit a channel"),
    "image-mode": Kind("warning", "save it as RGB or greyscale of 8 bit"),
    "record-unchecked": Kind("error", "write the file or the record again, or remove it"),
    # masks
    "missing-segmentation": Kind(
        "error", "add polygons or RLE (K-Net learns from masks), or remove the annotation"
    ),
    "polygon-empty": Kind("error", f"{_POINTS}; correct or remove it"),
    "polygon-coordinates": Kind("error", f"{_POINTS}; correct or remove it"),
    "polygon-outside": Kind(
        "error", "coordinates are pixels of this picture, not of another size, and no fractions"
    ),
    "polygon-self-intersecting": Kind("warning", "split it, or order its points along the outline"),
    "polygon-within-polygon": Kind(
        "warning", "if it is a hole, give the mask as an RLE: polygons of one object are added up"
    ),
    "polygon-unchecked": Kind("warning", "look at it, or give the mask as an RLE"),
    "rle-invalid": Kind("error", "encode the mask again, as with pycocotools.mask.encode"),
    "rle-size": Kind("error", "encode the mask at the picture's size"),
    "mask-size": Kind("error", "give the mask the picture's size"),
    "zero-area": Kind("warning", "correct or remove the object; it is left out of the training"),
    "wrong-area": Kind("warning", "count `area` again; COCO's AP by size is taken from it"),
    "bbox-wrong": Kind("warning", "`bbox` is [x, y, width, height] in pixels, around the mask"),
    "crowd-polygon": Kind("warning", "a crowd's mask is an RLE; set `iscrowd: 0` for one object"),
    # label PNGs
    "png-missing": Kind("error", "correct the name or the folder, or remove the record"),
    "png-unreadable": Kind("error", _REMAKE),
    "shared-name": Kind("error", "remove or rename one"),
    "png-size": Kind("error", "write the labels at the picture's size"),
    "panoptic-png-mode": Kind("error", "write the ids as R + 256 G + 65536 B with 8 bit a channel"),
    "png-id-unknown": Kind("error", "add the segment to segments_info, or write 0 for void"),
    "segment-without-pixels": Kind("warning", "remove it from segments_info, or paint it"),
    "label-png-mode": Kind(
        "error", "convert the folder with `python datasets/prepare_label_pngs.py IN OUT`"
    ),
    "label-range": Kind(
        "error",
        "add the class, or map the value (`python datasets/prepare_label_pngs.py IN OUT --map …`)",
    ),
    "ignored-foreground": Kind(
        "warning",
        "if it is the foreground, write it as class 1 (`python datasets/prepare_label_pngs.py IN "
        "OUT --map 255=1`)",
    ),
    # a data set with the config that trains or scores it
    "picture-in-two-sets": Kind(
        "warning", "remove it from one of them: scores on pictures of the training are too good"
    ),
    "too-many-objects": Kind("warning", "raise the key to the largest number of objects"),
    "small-objects": Kind("warning", "enlarge the pictures, or take a finer mask grid"),
}


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong.

    Attributes:
        kind: a key of :data:`KINDS`.
        file: the file to mend.
        record: where in it, e.g. ``image 12, annotation 7``; empty if it is the file as a whole.
        problem: what is wrong.
        mend: what to do.
        severity: ``error`` (the loader refuses the record) or ``warning``.
    """

    kind: str
    file: str
    record: str
    problem: str
    mend: str
    severity: str

    def __str__(self) -> str:
        """One line: file, record, problem and mend."""
        file = "" if self.file in self.problem else self.file
        where = ": ".join(part for part in (file, self.record, self.problem) if part)
        return f"{where}; {self.mend}".replace("\n", "\\n")  # file names may hold such


def make_defect(
    kind: str,
    file: str,
    record: str,
    problem: str,
    *,
    severity: str | None = None,
    mend: str | None = None,
) -> Defect:
    """A defect of a known kind, with that kind's severity and mend unless they are given."""
    default = KINDS[kind]
    return Defect(
        kind=kind,
        file=str(file),
        record=record,
        problem=problem,
        mend=default.mend if mend is None else mend,
        severity=default.severity if severity is None else severity,
    )


class DataError(ValueError):
    """Data that cannot be used; its message is the line of its defect.

    Attributes:
        defect: what is wrong; None if there is only a text.
        others: further errors that were found with it.
    """

    def __init__(self, defect: Defect | str, others: Sequence[Defect] = ()) -> None:
        self.defect = defect if isinstance(defect, Defect) else None
        self.others = tuple(others)
        more = len(self.others)
        tail = f" ({more} more such errors; tools/check_dataset.py lists all)" if more else ""
        super().__init__(f"{defect}{tail}")

    @property
    def defects(self) -> list[Defect]:
        """The defect and the others; empty if there is only a text."""
        return [] if self.defect is None else [self.defect, *self.others]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.defect or str(self), self.others if self.defect else ())


class MissingFileError(DataError, FileNotFoundError):
    """A picture or a label PNG that is not there."""


class PictureSizeError(DataError, SizeMismatchError):
    """A picture of another size than its record says."""


_ERRORS: Mapping[str, type[DataError]] = {
    "image-missing": MissingFileError,
    "png-missing": MissingFileError,
    "size-mismatch": PictureSizeError,
    "exif-rotation": PictureSizeError,
}


def data_error(defect: Defect, others: Sequence[Defect] = ()) -> DataError:
    """The error for a defect: also a FileNotFoundError or SizeMismatchError where it is one."""
    return _ERRORS.get(defect.kind, DataError)(defect, others)


def raise_first(defects: Iterable[Defect]) -> None:
    """Raises the DataError of the first defect that is an error; it carries the other errors.

    Warnings are left to the checker.
    """
    errors = [defect for defect in defects if defect.severity == "error"]
    if errors:
        raise data_error(errors[0], errors[1:])


def describe(record: Mapping[str, Any], annotation: object = None) -> str:
    """Names a record of a data set, or one annotation of it, for :attr:`Defect.record`."""
    parts = [f"image {record['image_id']}"] if "image_id" in record else []
    if annotation is not None:
        parts.append(f"annotation {annotation}")
    return ", ".join(parts)
