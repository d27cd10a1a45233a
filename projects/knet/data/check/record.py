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

from knet.data.categories import thing_ids
from knet.data.check.polygons import polygon_warnings
from knet.data.coco_file import check_keys, is_box, is_number
from knet.data.defects import DataError, Defect, Defects, describe, make_defect
from knet.data.images import MAX_PIXELS, PictureHeader, check_picture, rotation_defect
from knet.data.label_png import (
    check_label_size,
    class_defects,
    label_png_defects,
    open_label_png,
)
from knet.data.mapper import annotation_errors, segment_errors
from knet.data.masks import encode_segmentation, repeated_masks
from knet.data.panoptic_png import inspect_panoptic_png, segment_defects
from knet.modeling.targets import IGNORE_LABEL

# Polygons and boxes are drawn between pixels, masks are made of them: both differ a little.
_BOX_PIXELS, _BOX_SHARE = 2.0, 0.05
_AREA_SHARE, _AREA_ROUNDING = 0.1, 0.5


@dataclass(frozen=True)
class Expected:
    """What the records of a data set may hold."""

    annotation_file: str | None = None  # of instances; None: defects name the picture
    thing_ids: Sequence[int] | None = None  # classes of instances; None leaves them unchecked
    num_classes: int | None = None  # semantic labels must be below; None leaves them unchecked
    ignore_label: int = IGNORE_LABEL  # of label PNGs
    max_pixels: int = MAX_PIXELS  # larger pictures and label PNGs are refused

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


@dataclass
class RecordSummary:
    """One record."""

    size: tuple[int, int] | None = None  # (H, W) of the picture as it is read; None if it cannot be
    # class of each usable thing that is no crowd, with its area in pixels
    objects: list[tuple[int, int]] = field(default_factory=list)
    crowds: int = 0
    regions: dict[int, int] = field(default_factory=dict)  # pixels of each class in a semantic map
    ignored: int = 0  # pixels of a semantic map without a label
    defects: list[Defect] = field(default_factory=list)


def inspect_record(record: Mapping[str, Any], expected: Expected) -> RecordSummary:
    """Reads picture and labels of a record once.

    Args:
        record: in Detectron2's format: panoptic labels go before instances, and label PNGs beside
            them are checked, but not counted.
        expected: of its data set.
    """
    inspection = _Inspection(record, expected)
    try:
        inspection.run()
    except Exception as error:  # of a kind that nobody thought of: all other records go on
        where = record.get("file_name") or expected.annotation_file or ""
        problem = f"cannot be checked: {type(error).__name__}: {error}"
        defect = make_defect("record-unchecked", where, describe(record), problem)
        inspection.summary.defects.append(defect)
    return inspection.summary


class _Inspection:
    """A record while it is looked at; the methods add what they find to the summary."""

    def __init__(self, record: Mapping[str, Any], expected: Expected) -> None:
        self.record, self.expected = record, expected
        self.name = describe(record)
        self.header: PictureHeader | None = None
        self.summary = RecordSummary()

    def run(self) -> None:
        found = Defects(self.expected.annotation_file or "", self.name)
        if not check_keys(self.record, ("file_name",), found):
            self.summary.defects += found
            return
        max_pixels = self.expected.max_pixels
        self.header, self.summary.defects = check_picture(self.record, max_pixels=max_pixels)
        self.summary.size = None if self.header is None else self.header.size
        parts = {
            "pan_seg_file_name": self.panoptic,
            "annotations": self.annotations,
            "sem_seg_file_name": self.semantic,
        }
        if "pan_seg_file_name" in self.record:
            del parts["annotations"]
        for key, inspect in parts.items():
            try:
                if key in self.record:
                    inspect()
            except DataError as error:  # a label PNG of which nothing more can be said
                self.summary.defects += error.defects

    def panoptic(self) -> None:
        path, summary = self.record["pan_seg_file_name"], self.summary
        unusable = segment_errors(self.record)
        if unusable:
            summary.defects += unusable
            return
        picture = self.record["file_name"]
        ids, opaque = inspect_panoptic_png(path, self.name, summary.size, picture)
        if not opaque:
            problem = "has transparent pixels: alpha is ignored, R, G and B alone are the id"
            mend = "look whether they should be void (id 0), and save it as RGB"
            own = {"severity": "warning", "mend": mend}
            summary.defects.append(
                make_defect("panoptic-png-mode", path, self.name, problem, **own)
            )
        self._check_size(ids, path)
        segments, things = self.record["segments_info"], self.expected.thing_ids
        found, pixels = segment_defects(ids, segments, path, self.name)
        summary.defects += found
        count = self.expected.num_classes
        classes = None if count is None else range(count)
        for segment in segments:
            label, area = segment["category_id"], pixels.get(int(segment["id"]), 0)
            is_thing = segment.get("isthing", things is not None and label in things)
            is_crowd = bool(segment.get("iscrowd", 0))
            where = f"{self.name}, segment {segment['id']}"
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

    def semantic(self) -> None:
        path, summary = self.record["sem_seg_file_name"], self.summary
        ignored, classes = self.expected.ignore_label, self.expected.num_classes
        mode, labels = open_label_png(path, self.name, summary.size, self.record["file_name"])
        found = label_png_defects(mode, labels, classes, ignored, path, self.name)
        summary.defects += found
        self._check_size(labels, path)
        if not found and "pan_seg_file_name" not in self.record:  # these have been counted
            counts = np.bincount(labels.ravel(), minlength=256)
            summary.regions.update({int(k): int(counts[k]) for k in np.flatnonzero(counts)})
            summary.ignored = summary.regions.pop(ignored, 0)

    def _check_size(self, labels: np.ndarray, path: str) -> None:
        """Raises DataError if labels have not their picture's size; names a rotation as such."""
        header, summary = self.header, self.summary
        if header is None:
            return
        if labels.shape[:2] == header.stored != header.size:
            # One defect, not two: the tag is why the sizes differ.
            summary.defects = [d for d in summary.defects if d.kind != "exif-rotation"]
            raise DataError(rotation_defect(header, self.record, displaced=True))
        check_label_size(labels, header.size, path, self.name, self.record["file_name"])

    def annotations(self) -> None:
        record, summary = self.record, self.summary
        # Against the size that the annotations were made for: a picture of another size is one
        # defect, not one of each mask.
        size = summary.size
        if record.get("height") is not None and record.get("width") is not None:
            size = (record["height"], record["width"])
        if size is None:
            return
        masks: list[tuple[Defects, int, dict[str, Any]]] = []  # place, class and RLE
        for position, annotation in enumerate(record["annotations"]):
            found = annotation_errors(record, position, size, self.expected.annotation_file)
            file, name, label = found.file, found.record, annotation.get("category_id")
            crowd = bool(annotation.get("iscrowd", 0))
            if not crowd and isinstance(label, (int, np.integer)):
                known = self.expected.thing_ids
                found += class_defects(np.array([label]), known, file, "instance class", name)
            if found:
                summary.defects += found
                continue
            segmentation = annotation["segmentation"]
            drawn = isinstance(segmentation, list)
            if drawn:
                found += polygon_warnings(segmentation, size, file, name)
            rle = encode_segmentation(segmentation, size)
            area = int(mask_util.area(rle))
            if crowd and drawn:
                found.add("crowd-polygon", "a crowd (iscrowd 1) with polygons")
            if area:
                check_measures(annotation, rle, area, found, drawn=drawn)
            else:
                found.add("zero-area", "the mask has no pixel")
            summary.defects += found
            if crowd and area:
                summary.crowds += 1
            elif area:
                summary.objects.append((label, area))
                masks.append((found.at(name), label, rle))
        labels = [label for _, label, _ in masks]
        for one, other in repeated_masks([rle for *_, rle in masks], labels):
            first = masks[other][0].record.split(", ")[-1]
            problem = f"the mask is that of {first}, of the same class"
            masks[one][0].add("same-object-twice", problem)
            summary.defects += masks[one][0]


def check_measures(
    annotation: Mapping[str, Any], rle: dict[str, Any], area: int, found: Defects, *, drawn: bool
) -> None:
    """Adds where ``area`` and ``bbox`` disagree with the mask.

    Args:
        rle, area: the mask and its pixels.
        drawn: whether the mask is a polygon, whose own area differs a little from its pixels'.
    """
    x, y, width, height = (float(v) for v in mask_util.toBbox(rle))
    given = annotation.get("area", area)
    if not is_number(given):
        found.add("bad-value", f"area is {given!r}, not a number of pixels", severity="warning")
    elif given <= 0 or abs(given - area) > (
        _AREA_SHARE * max(given, area) + width + height if drawn else _AREA_ROUNDING
    ):
        found.add("wrong-area", f"area is {given:g}, but the mask has {area} pixels")
    mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    if "bbox" in annotation and not is_box(annotation["bbox"]):
        problem = f"bbox is {annotation['bbox']!r}, not four numbers"
        found.add("bad-value", problem, severity="warning")
    elif "bbox" in annotation and mode in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        stated = np.array(BoxMode.convert(list(annotation["bbox"]), mode, BoxMode.XYXY_ABS))
        actual = np.array([x, y, x + width, y + height])
        allowed = _BOX_PIXELS + _BOX_SHARE * np.array([width, height, width, height])
        if not (np.abs(stated - actual) <= allowed).all():
            text = [", ".join(f"{v:g}" for v in values) for values in (stated, actual)]
            problem = f"bbox spans {text[0]} (x0, y0, x1, y1), but the mask {text[1]}"
            found.add("bbox-wrong", problem)
