"""Reads picture and labels of one record: what is in it, and all that is wrong with it.

The errors are those at which :class:`knet.data.KNetDatasetMapper` stops, from the same functions;
the warnings are about what can be used, but looks wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import Metadata
from detectron2.structures import BoxMode

from knet.data.check.polygons import polygon_warnings
from knet.data.coco_file import is_box, is_number, missing_keys, number_defects
from knet.data.defects import DataError, Defect, Defects, annotation_name, describe
from knet.data.images import MAX_PIXELS, PictureHeader, check_picture, rotation_defect
from knet.data.label_png import (
    IGNORE_LABEL,
    check_label_size,
    class_defects,
    label_png_defects,
    open_label_png,
)
from knet.data.masks import encode_segmentation, repeated_masks, segmentation_errors
from knet.data.panoptic_png import inspect_panoptic_png, segment_defects, segment_key_defects

# Polygons and boxes are drawn between pixels, masks are made of them: both differ a little.
_BOX_PIXELS, _BOX_SHARE = 2.0, 0.05
_AREA_SHARE, _AREA_ROUNDING = 0.1, 0.5


@dataclass(frozen=True)
class Expected:
    """What the records of a data set may hold.

    Attributes:
        annotation_file: of instance annotations; None: defects name the picture.
        thing_ids: the classes that instances may have; None leaves them unchecked.
        num_classes: semantic labels must be below; None leaves them unchecked.
        ignore_label: of label PNGs.
        max_pixels: of pictures and label PNGs; larger ones are refused.
    """

    annotation_file: str | None = None
    thing_ids: Sequence[int] | None = None
    num_classes: int | None = None
    ignore_label: int = IGNORE_LABEL
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_metadata(cls, meta: Metadata, *, max_pixels: int = MAX_PIXELS) -> Expected:
        """From a data set's metadata, as the mapper takes it."""
        stuff = meta.get("stuff_classes")
        return cls(
            annotation_file=meta.get("json_file"),
            thing_ids=thing_ids(meta),
            num_classes=len(stuff) if stuff else None,
            ignore_label=meta.get("ignore_label", IGNORE_LABEL),
            max_pixels=max_pixels,
        )


def thing_ids(meta: Metadata) -> list[int] | None:
    """The classes that instances of a data set may have, sorted; None if its metadata name none."""
    # Cityscapes numbers its things 11 to 18, after the stuff, so their count is no bound.
    ids = meta.get("thing_dataset_id_to_contiguous_id")
    names = meta.get("thing_classes")
    return sorted(set(ids.values())) if ids else list(range(len(names))) if names else None


@dataclass
class RecordSummary:
    """One record.

    Attributes:
        size: (H, W) of the picture in pixels, as it is read; None if it cannot be.
        objects: class of each usable thing that is no crowd, with its area in pixels.
        crowds: the number of crowds.
        regions: pixels of each class in a semantic map.
        ignored: pixels of a semantic map without a label.
        defects: all that is wrong.
    """

    size: tuple[int, int] | None = None
    objects: list[tuple[int, int]] = field(default_factory=list)
    crowds: int = 0
    regions: dict[int, int] = field(default_factory=dict)
    ignored: int = 0
    defects: Defects = field(default_factory=Defects)


def label_errors(
    record: Mapping[str, Any], size: tuple[int, int], file: str | None = None
) -> list[Defect]:
    """What makes the annotations of a record unusable, whoever read it; label PNGs stay closed.

    Args:
        record: in Detectron2's format.
        size: (H, W) of its picture.
        file: of the annotations, for messages; None: what the record knows.
    """
    name = describe(record)
    if "pan_seg_file_name" in record:
        path = record["pan_seg_file_name"]
        found = missing_keys(record, ("segments_info",), path, name)
        return found or segment_key_defects(record["segments_info"], path, name)
    found = []
    for position in range(len(record.get("annotations", ()))):
        found += annotation_errors(record, position, size, file)
    return found


def annotation_errors(
    record: Mapping[str, Any], position: int, size: tuple[int, int], file: str | None = None
) -> list[Defect]:
    """What makes one of a record's instance annotations unusable; see :func:`label_errors`."""
    file = file or record.get("annotation_file", record["file_name"])
    annotation, name = record["annotations"][position], annotation_name(record, position)
    found = number_defects(annotation, ("category_id",), file, name)
    return found + segmentation_errors(annotation.get("segmentation"), size, file, name)


def check_record(record: Mapping[str, Any], expected: Expected) -> list[Defect]:
    """All that is wrong with picture and labels of a record in Detectron2's format."""
    return inspect_record(record, expected).defects


def inspect_record(record: Mapping[str, Any], expected: Expected) -> RecordSummary:
    """Reads picture and labels of a record once.

    Args:
        record: in Detectron2's format: panoptic labels go before instances, and label PNGs beside
            them are checked, but not counted.
        expected: of its data set.
    """
    summary = RecordSummary()
    try:
        _inspect(record, expected, summary)
    except Exception as error:  # of a kind that nobody thought of: all other records go on
        where = record.get("file_name") or expected.annotation_file or ""
        problem = f"cannot be checked: {type(error).__name__}: {error}"
        summary.defects.add("record-unchecked", where, describe(record), problem)
    return summary


def _inspect(record: Mapping[str, Any], expected: Expected, summary: RecordSummary) -> None:
    lacking = missing_keys(record, ("file_name",), expected.annotation_file or "", describe(record))
    if lacking:
        summary.defects += lacking
        return
    header, found = check_picture(record, max_pixels=expected.max_pixels)
    summary.size = None if header is None else header.size
    summary.defects += found
    for key, inspect in (
        ("pan_seg_file_name", _inspect_panoptic),
        ("annotations", _inspect_annotations),
        ("sem_seg_file_name", _inspect_semantic),
    ):
        if key not in record or (key == "annotations" and "pan_seg_file_name" in record):
            continue
        try:
            inspect(record, expected, header, summary)
        except DataError as error:  # label PNGs of which nothing more can be said
            summary.defects += error.defects


def _inspect_panoptic(
    record: Mapping[str, Any],
    expected: Expected,
    header: PictureHeader | None,
    summary: RecordSummary,
) -> None:
    path, name = record["pan_seg_file_name"], describe(record)
    wrong = label_errors(record, (0, 0))
    if wrong:
        summary.defects += wrong
        return
    segments = record["segments_info"]
    ids, opaque = inspect_panoptic_png(path, name, summary.size, record["file_name"])
    if not opaque:
        problem = "has transparent pixels: alpha is ignored, R, G and B alone are the id"
        mend = "look whether they should be void (id 0), and save it as RGB"
        kind, severity = "panoptic-png-mode", "warning"
        summary.defects.add(kind, path, name, problem, severity=severity, mend=mend)
    _check_label_size(ids, path, record, header, summary)
    found, pixels = segment_defects(ids, segments, path, name)
    summary.defects += found
    things = expected.thing_ids
    classes = None if expected.num_classes is None else range(expected.num_classes)
    for segment in segments:
        label, area = segment["category_id"], pixels.get(int(segment["id"]), 0)
        is_thing = segment.get("isthing", things is not None and label in things)
        is_crowd = bool(segment.get("iscrowd", 0))
        where = f"{name}, segment {segment['id']}"
        wrong = class_defects(np.array([label]), classes, path, "class", where)
        if not wrong and is_thing and not is_crowd:
            wrong = class_defects(np.array([label]), things, path, "instance class", where)
        summary.defects += wrong
        if wrong or not area:
            continue
        if not is_thing:
            summary.regions[label] = summary.regions.get(label, 0) + area
        elif is_crowd:
            summary.crowds += 1
        else:
            summary.objects.append((label, area))


def _inspect_semantic(
    record: Mapping[str, Any],
    expected: Expected,
    header: PictureHeader | None,
    summary: RecordSummary,
) -> None:
    path, name = record["sem_seg_file_name"], describe(record)
    ignored = expected.ignore_label
    mode, labels = open_label_png(path, name, summary.size, record["file_name"])
    found = label_png_defects(mode, labels, expected.num_classes, ignored, path, name)
    summary.defects += found
    _check_label_size(labels, path, record, header, summary)
    if not found and "pan_seg_file_name" not in record:  # these have been counted
        counts = np.bincount(labels.ravel(), minlength=256)
        summary.regions.update({int(k): int(counts[k]) for k in np.flatnonzero(counts)})
        summary.ignored = summary.regions.pop(ignored, 0)


def _check_label_size(
    labels: np.ndarray,
    path: str,
    record: Mapping[str, Any],
    header: PictureHeader | None,
    summary: RecordSummary,
) -> None:
    """Raises DataError if labels have not their picture's size; names a rotation for what it is."""
    if header is None:
        return
    if labels.shape[:2] == header.stored != header.size:
        # One defect, not two: the tag is why the sizes differ.
        others = [defect for defect in summary.defects if defect.kind != "exif-rotation"]
        summary.defects[:] = others
        raise DataError(rotation_defect(header, record, displaced=True))
    check_label_size(labels, header.size, path, describe(record), record["file_name"])


def _inspect_annotations(
    record: Mapping[str, Any],
    expected: Expected,
    header: PictureHeader | None,
    summary: RecordSummary,
) -> None:
    file = expected.annotation_file or record.get("annotation_file", record["file_name"])
    # Against the size that the annotations were made for: a picture of another size is one
    # defect, not one of each mask.
    size = None if header is None else header.size
    if record.get("height") is not None and record.get("width") is not None:
        size = (record["height"], record["width"])
    if size is None:
        return
    masks: list[tuple[str, int, dict[str, Any]]] = []  # name, class and RLE of each object
    for position, annotation in enumerate(record["annotations"]):
        name = annotation_name(record, position)
        segmentation, label = annotation.get("segmentation"), annotation.get("category_id")
        found = annotation_errors(record, position, size, file)
        crowd = bool(annotation.get("iscrowd", 0))
        if not crowd and not number_defects(annotation, ("category_id",), file, name):
            ids = expected.thing_ids
            found += class_defects(np.array([label]), ids, file, "instance class", name)
        if found:
            summary.defects += found
            continue
        drawn = isinstance(segmentation, list)
        if drawn:
            summary.defects += polygon_warnings(segmentation, size, file, name)
        rle = encode_segmentation(segmentation, size)
        area = int(mask_util.area(rle))
        if crowd and drawn:
            summary.defects.add("crowd-polygon", file, name, "a crowd (iscrowd 1) with polygons")
        if not area:
            summary.defects.add("zero-area", file, name, "the mask has no pixel")
            continue
        summary.defects += _measure_defects(annotation, rle, area, file, name, drawn=drawn)
        if crowd:
            summary.crowds += 1
        else:
            summary.objects.append((label, area))
            masks.append((name, label, rle))
    for one, other in repeated_masks([rle for *_, rle in masks], [label for _, label, _ in masks]):
        problem = f"the mask is that of {masks[other][0].split(', ')[-1]}, of the same class"
        summary.defects.add("same-object-twice", file, masks[one][0], problem)


def _measure_defects(
    annotation: Mapping[str, Any],
    rle: dict[str, Any],
    area: int,
    file: str,
    name: str,
    *,
    drawn: bool,
) -> list[Defect]:
    """Where ``area`` and ``bbox`` disagree with the mask.

    Args:
        rle, area: the mask and its pixels.
        drawn: whether the mask is a polygon, whose own area differs a little from its pixels'.
    """
    found = Defects()
    x, y, width, height = (float(v) for v in mask_util.toBbox(rle))
    given = annotation.get("area", area)
    if not is_number(given):
        problem = f"area is {given!r}, not a number of pixels"
        found.add("bad-value", file, name, problem, severity="warning")
    elif given <= 0 or abs(given - area) > (
        _AREA_SHARE * max(given, area) + width + height if drawn else _AREA_ROUNDING
    ):
        problem = f"area is {given:g}, but the mask has {area} pixels"
        found.add("wrong-area", file, name, problem)
    mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    if "bbox" in annotation and not is_box(annotation["bbox"]):
        problem = f"bbox is {annotation['bbox']!r}, not four numbers"
        found.add("bad-value", file, name, problem, severity="warning")
    elif "bbox" in annotation and mode in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        stated = np.array(BoxMode.convert(list(annotation["bbox"]), mode, BoxMode.XYXY_ABS))
        actual = np.array([x, y, x + width, y + height])
        allowed = _BOX_PIXELS + _BOX_SHARE * np.array([width, height, width, height])
        if not (np.abs(stated - actual) <= allowed).all():
            text = [", ".join(f"{v:g}" for v in values) for values in (stated, actual)]
            problem = f"bbox spans {text[0]} (x0, y0, x1, y1), but the mask {text[1]}"
            found.add("bbox-wrong", file, name, problem)
    return found
