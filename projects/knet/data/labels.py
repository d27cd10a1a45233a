"""Label maps and masks before and through augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import transforms as T

from knet.data.annotations.coco_file import number_defects
from knet.data.annotations.label_files import open_label_png, size_defect
from knet.data.annotations.segmentations import segmentation_errors
from knet.data.defects import DataError, Defect, describe, make_defect, raise_first

__all__ = [
    "IGNORE_LABEL",
    "annotation_name",
    "annotation_source",
    "check_classes",
    "check_label_size",
    "class_defects",
    "encode_annotations",
    "encode_segmentation",
    "label_png_defects",
    "read_label_png",
    "repeated_masks",
    "transform_labels",
    "transform_masks",
]

IGNORE_LABEL = 255

_SAME_MASK = 0.98  # intersection over union of two masks that mean one object
_MODES = {
    "1": "1 bit",
    "F": "floating point",
    "L;2": "2 bit greyscale",
    "L;4": "4 bit greyscale",
    "P": "palette",
}


def read_label_png(
    path: str,
    size: tuple[int, int],
    num_classes: int | None,
    ignore_label: int,
    record: str = "",
) -> np.ndarray:
    """Reads a semantic label PNG.

    Args:
        path: of an 8 bit greyscale picture, the values being labels.
        size: (H, W) that it must have.
        num_classes: labels must be below, or equal to ``ignore_label``; None: unchecked.
        ignore_label: value of pixels without a label.
        record: that it belongs to, for messages.

    Returns:
        (H, W) uint8, with 255 for ``ignore_label``.

    Raises:
        DataError: naming the file and the record, if it is missing (also a FileNotFoundError),
            cannot be read, is no label map of this size and kind, or holds other labels.
    """
    mode, labels = open_label_png(path, record, size)
    raise_first(label_png_defects(mode, labels, num_classes, ignore_label, path, record))
    check_label_size(labels, size, path, record)
    if ignore_label != IGNORE_LABEL:
        labels[labels == ignore_label] = IGNORE_LABEL
    return labels


def label_png_defects(
    mode: str,
    labels: np.ndarray,
    num_classes: int | None,
    ignore_label: int,
    path: str,
    record: str,
) -> list[Defect]:
    """What is wrong with the kind or the values of a label PNG; see :func:`read_label_png`.

    Args:
        mode, labels: as :func:`knet.data.annotations.label_files.open_label_png` gives.
    """
    if mode != "L":
        return [_wrong_mode(mode, labels, path, record)]
    if num_classes is None:
        return []
    wrong = labels[(labels >= num_classes) & (labels != ignore_label)]
    return class_defects(
        np.unique(wrong), range(num_classes), path, "label", record, kind="label-range"
    )


def check_label_size(
    labels: np.ndarray, size: tuple[int, int], path: str, record: str, picture: str = ""
) -> None:
    """Raises DataError if labels (H, W, …) have another size than their picture."""
    if labels.shape[:2] != size:
        raise DataError(size_defect(labels.shape, size, path, record, picture))


def _wrong_mode(mode: str, values: np.ndarray, path: str, record: str) -> Defect:
    """The defect of an image that is not 8 bit greyscale."""
    if values.ndim == 3:
        return make_defect(
            "label-png-mode",
            path,
            record,
            f"a label map has one channel, this one has {values.shape[2]} (mode {mode})",
            mend="write the class index of each pixel into an 8 bit greyscale PNG",
        )
    kind = _MODES.get(mode, "16 or 32 bit greyscale")
    problem = (
        f"a label map is an 8 bit greyscale PNG, this one is a {kind} image (mode {mode}; largest "
        f"value {float(values.max()):g})"
    )
    return make_defect("label-png-mode", path, record, problem)


def check_classes(
    values: np.ndarray,
    known: Sequence[int] | None,
    path: str,
    what: str,
    record: str = "",
    *,
    kind: str = "unknown-category",
) -> None:
    """Raises DataError, naming file, record and value, unless all values are known ids.

    Args:
        values: ids.
        known: sorted ids; None allows any that is not negative.
        path: of the file, for messages.
        what: the ids are, for messages.
        record: in the file, for messages.
        kind: of the defect.
    """
    raise_first(class_defects(values, known, path, what, record, kind=kind))


def class_defects(
    values: np.ndarray,
    known: Sequence[int] | None,
    path: str,
    what: str,
    record: str,
    *,
    kind: str = "unknown-category",
) -> list[Defect]:
    """A defect for each value that :func:`check_classes` would refuse, in their order."""
    wrong = values < 0 if known is None else ~np.isin(values, known)
    allowed = "must not be negative"
    if known is not None:
        gaps = known[-1] - known[0] >= len(known) if known else True
        ids = ", ".join(map(str, known)) if gaps else f"{known[0]} to {known[-1]}"
        allowed = f"there are {len(known)}, {ids}"
    return [
        make_defect(kind, path, record, f"{what} {value}, but {allowed}")
        for value in dict.fromkeys(values[wrong].tolist())
    ]


def annotation_name(record: Mapping[str, Any], position: int) -> str:
    """Names an annotation of a record, by its id where it has one, for messages."""
    annotations = record["annotations"]
    given = annotations[position].get("id")
    return describe(record, f"{position + 1} of {len(annotations)}" if given is None else given)


def annotation_source(record: Mapping[str, Any]) -> tuple[str, str]:
    """The file to mend for a record's annotations, and what names its picture in a message.

    The JSON where the record knows it, else the picture.
    """
    picture = record["file_name"]
    file = record.get("annotation_file", picture)
    return file, "" if file == picture else f" of {picture}"


def encode_annotations(
    annotations: Sequence[dict[str, Any]], size: tuple[int, int], record: dict[str, Any]
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Compressed RLE of instance annotations: hundreds of masks in a few kilobytes.

    Args:
        annotations: with ``category_id``, ``segmentation`` (polygons; RLE, compressed or not;
            or a (H, W) mask) and perhaps ``iscrowd``; crowds are left out.
        size: (H, W) of the picture.
        record: of the data set, for messages.

    Returns:
        N RLE dicts and classes ((N,) int64).

    Raises:
        DataError: naming the picture, the annotation and (where the record knows it) the JSON, for
            a mask that is missing or cannot be used, of a crowd too.
    """
    file, owner = annotation_source(record)
    for position, annotation in enumerate(annotations):
        name = annotation_name(record, position) + owner
        raise_first(number_defects(annotation, ("category_id",), file, name))
        raise_first(segmentation_errors(annotation.get("segmentation"), size, file, name))
    kept = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    masks = [encode_segmentation(annotation["segmentation"], size) for annotation in kept]
    return masks, np.array([annotation["category_id"] for annotation in kept], np.int64)


def encode_segmentation(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The compressed RLE of a mask without errors (see :func:`segmentation_errors`).

    Args:
        segmentation: polygons, an RLE dict, or an (H, W) array.
        size: (H, W) of the picture.
    """
    height, width = size
    if isinstance(segmentation, np.ndarray):
        return mask_util.encode(np.asfortranarray(segmentation, dtype=np.uint8))
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, height, width)
        return segmentation
    polygons = [np.asarray(polygon, np.float64).tolist() for polygon in segmentation]
    return mask_util.merge(mask_util.frPyObjects(polygons, height, width))


def repeated_masks(
    masks: Sequence[dict[str, Any]], classes: Sequence[int]
) -> list[tuple[int, int]]:
    """Objects that an image has twice: (position, position of the first) of each repeated one.

    Args:
        masks: N compressed RLE dicts of one image, each with a pixel at least.
        classes: of each; only objects of one class are compared.
    """
    # one by one: pycocotools' area of more than 255 masks fails with numpy 2
    areas = np.array([mask_util.area(mask) for mask in masks], np.float64)
    boxes = np.array([mask_util.toBbox(mask) for mask in masks]).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    kinds = np.asarray(classes)
    found = []
    for one in range(1, len(masks)):
        alike = kinds[:one] == kinds[one]
        alike &= areas[:one] >= _SAME_MASK * areas[one]
        alike &= areas[:one] * _SAME_MASK <= areas[one]
        alike &= ((low[:one] < high[one]) & (high[:one] > low[one])).all(axis=1)
        near = np.flatnonzero(alike).tolist()
        if near:
            ious = mask_util.iou([masks[k] for k in near], [masks[one]], [0])[:, 0]
            same = [k for k, iou in zip(near, ious.tolist()) if iou >= _SAME_MASK]
            found += [(one, same[0])] if same else []
    return found


def transform_labels(transforms: T.TransformList, labels: np.ndarray) -> np.ndarray:
    """Moves a label map (H, W) along with its picture, by nearest neighbour; keeps the dtype.

    Pixels that come from outside of the picture become 0.
    """
    if labels.dtype == np.uint8:
        return np.array(transforms.apply_segmentation(labels))
    # Detectron2 takes other neighbours for other types, so it is the pixels that are moved.
    flat = np.concatenate([np.zeros(1, labels.dtype), labels.ravel(order="F")])
    return flat[_moved_pixels(transforms, labels.shape)]


def transform_masks(
    transforms: T.TransformList, masks: Sequence[dict[str, Any]], size: tuple[int, int]
) -> np.ndarray:
    """Moves masks along with their picture, by nearest neighbour.

    One mask at a time is decoded at the picture's own size, whatever their number.

    Args:
        transforms: of the picture.
        masks: N compressed RLE dicts of the picture before.
        size: (H, W) of the picture afterwards.

    Returns:
        (N, H, W) bool.
    """
    moved = np.zeros((len(masks), *size), bool)
    if not masks:
        return moved
    height, width = masks[0]["size"]
    pixels = _moved_pixels(transforms, (height, width))
    flat = np.zeros(height * width + 1, np.uint8)
    for mask, rle in zip(moved, masks):
        flat[1:] = mask_util.decode(rle).ravel(order="F")  # as decoded: by columns
        np.take(flat, pixels, out=mask.view(np.uint8))
    return moved


def _moved_pixels(transforms: T.TransformList, size: tuple[int, int]) -> np.ndarray:
    """Where each pixel of the moved picture comes from: 1 + its index by columns, 0 for nowhere.

    The index goes through as three maps of bytes, the one type whose nearest neighbours are those
    of Pillow, as the picture's are.
    """
    height, width = size
    index = np.arange(1, height * width + 1, dtype=np.uint32).reshape(width, height).T
    parts = (
        transforms.apply_segmentation(np.ascontiguousarray(index >> shift & 0xFF, np.uint8))
        for shift in range(0, 32, 8)
        if index[-1, -1] >> shift
    )
    moved = [part.astype(np.int64) << 8 * number for number, part in enumerate(parts)]
    return np.sum(moved, axis=0)
