"""What can be wrong with a data set: kinds of defects, and the error that carries one.

The readers, the mapper and ``knet check`` build every defect here, so that they agree
on what is an error and on how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data.detection_utils import SizeMismatchError

_REMAKE = "restore the file from its source, or remove it and its annotations"
_POINTS = "a polygon is a list [x0, y0, x1, y1, …] of three or more points; correct or remove it"

# kind → how to mend it, of what cannot be trained on
ERRORS: Mapping[str, str] = {
    # annotation files
    "no-images": "list the pictures under `images`, each with id and file_name",
    "mixed-image-ids": "write all ids as numbers, or all as text: COCO's evaluation cannot sort "
    "them",
    "json-invalid": "write the file again as one JSON object in COCO's format",
    "missing-key": "add the key",
    "bad-value": "correct the value",
    "no-categories": "list the classes under `categories`, each with id and name",
    "duplicate-category": "give every category an id of its own",
    "unknown-category": "add the category to `categories`, or correct its id",
    "duplicate-image-id": "give every image an id of its own",
    "duplicate-annotation-id": "give every annotation an id of its own",
    "duplicate-segment-id": "give every segment of an image an id of its own",
    "duplicate-annotation": "merge them, so that each image has one annotation",
    "segment-id-zero": "give it another id: 0 marks void pixels",
    "orphan-annotation": "add the image, correct the id, or remove the annotation",
    "nothing-to-learn": "annotate objects one by one with `iscrowd: 0`; crowds are left out of "
    "training",
    "ignore-flag": "write `iscrowd: 1`, or remove the annotation",
    # tar shards
    "shard-truncated": "write or copy the shard again",
    "shard-invalid": "unpack it if it is compressed, else write or copy the shard again",
    "shard-order": "give every sample a key of its own, and write its members in a row",
    # pictures
    "image-missing": "correct the name or the folder, or remove the record",
    "image-unreadable": _REMAKE,
    "image-truncated": _REMAKE,
    "image-too-large": "scale it down or cut it into tiles, or raise INPUT.MAX_PIXELS in the "
    "config",
    "size-mismatch": "use the picture that was annotated, or correct the size",
    "image-depth": "scale its values to 0 … 255 and save it with 8 bit a channel",
    "record-unchecked": "write the file or the record again, or remove it",
    # masks
    "missing-segmentation": "add polygons or RLE (K-Net learns from masks), or remove the "
    "annotation",
    "polygon-empty": _POINTS,
    "polygon-coordinates": _POINTS,
    "polygon-outside": "coordinates are pixels of this picture, not of another size, and no "
    "fractions",
    "rle-invalid": "encode the mask again, as with pycocotools.mask.encode",
    "rle-size": "encode the mask at the picture's size",
    "mask-size": "give the mask the picture's size",
    # label PNGs
    "png-missing": "correct the name or the folder, or remove the record",
    "png-unreadable": _REMAKE,
    "shared-name": "remove or rename one",
    "png-size": "write the labels at the picture's size",
    "panoptic-png-mode": "write the ids as R + 256 G + 65536 B with 8 bit a channel",
    "png-id-unknown": "add the segment to segments_info, or write 0 for void",
    "label-png-mode": "convert the folder with `python datasets/prepare_label_pngs.py IN OUT`",
    "label-range": "add the class, or map the value (`python datasets/prepare_label_pngs.py IN OUT "
    "--map …`)",
}
# and of what can be used, but looks wrong
WARNINGS: Mapping[str, str] = {
    "duplicate-category-name": "give every category a name of its own",
    "annotation-id-zero": "count from 1: COCO's evaluation reads 0 as `no match`",
    "shared-file": "give every image a file of its own, or merge their entries",
    "image-without-annotation": "annotate it; it is not used as it is",
    "same-object-twice": "remove one: two right answers would be one false one",
    "class-without-labels": "label it, or remove it from the classes; scores are those of the "
    "other classes",
    "exif-rotation": "turn the pixels for good and remove the tag (ImageOps.exif_transpose of "
    "Pillow), then look whether the annotations fit",
    "image-mode": "save it as RGB or greyscale of 8 bit",
    "polygon-self-intersecting": "split it, or order its points along the outline",
    "polygon-within-polygon": "if it is a hole, give the mask as an RLE: polygons of one object "
    "are added up",
    "polygon-unchecked": "look at it, or give the mask as an RLE",
    "zero-area": "correct or remove the object; it is left out of the training",
    "wrong-area": "count `area` again; COCO's AP by size is taken from it",
    "bbox-wrong": "`bbox` is [x, y, width, height] in pixels, around the mask",
    "crowd-polygon": "a crowd's mask is an RLE; set `iscrowd: 0` for one object",
    "segment-without-pixels": "remove it from segments_info, or paint it",
    "ignored-foreground": "if it is the foreground, write it as class 1 (`python "
    "datasets/prepare_label_pngs.py IN OUT --map 255=1`)",
    # a data set with the config that trains or scores it
    "picture-in-two-sets": "remove it from one of them: scores on pictures of the training are too "
    "good",
    "too-many-objects": "raise the key to the largest number of objects",
    "small-objects": "enlarge the pictures, or take a finer mask grid",
}
KINDS: Mapping[str, str] = {**ERRORS, **WARNINGS}


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
    usual = "error" if kind in ERRORS else "warning"
    return Defect(kind, str(file), record, problem, mend or KINDS[kind], severity or usual)


class Defects(list[Defect]):
    """Defects as they are found in one place: in a file, and in one record of it."""

    def __init__(self, file: str = "", record: str = "") -> None:
        super().__init__()
        self.file, self.record = file, record

    def add(self, kind: str, problem: str, record: str | None = None, **own: str) -> None:
        """Adds one, of another record perhaps; the other arguments as of :func:`make_defect`."""
        self.append(make_defect(kind, self.file, record or self.record, problem, **own))

    def at(self, record: str) -> Defects:
        """An empty list for a record of the same file."""
        return Defects(self.file, record)


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
        tail = f" ({more} more such errors; knet check lists all)" if more else ""
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


_TYPES: Mapping[str, type[DataError]] = {
    "image-missing": MissingFileError,
    "png-missing": MissingFileError,
    "size-mismatch": PictureSizeError,
    "exif-rotation": PictureSizeError,
}


def failure(kind: str, file: str, record: str, problem: str, **own: str) -> DataError:
    """The error for one defect; arguments as of :func:`make_defect`."""
    return data_error(make_defect(kind, file, record, problem, **own))


def data_error(defect: Defect, others: Sequence[Defect] = ()) -> DataError:
    """The error for a defect: also a FileNotFoundError or SizeMismatchError where it is one."""
    return _TYPES.get(defect.kind, DataError)(defect, others)


def is_broken(defects: Iterable[Defect]) -> bool:
    """Whether an error is among defects."""
    return any(defect.severity == "error" for defect in defects)


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


def annotation_name(record: Mapping[str, Any], position: int) -> str:
    """Names an annotation of a record, by its id where it has one, for messages."""
    annotations = record["annotations"]
    given = annotations[position].get("id")
    return describe(record, f"{position + 1} of {len(annotations)}" if given is None else given)
