"""Label maps and masks before and through augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import transforms as T

from .label_files import open_label_png

__all__ = [
    "IGNORE_LABEL",
    "check_classes",
    "decode_annotations",
    "read_label_png",
    "transform_labels",
    "transform_masks",
]

IGNORE_LABEL = 255

_MODES = {"P": "palette", "1": "1 bit", "F": "floating point"}


def read_label_png(
    path: str, size: tuple[int, int], num_classes: int | None, ignore_label: int
) -> np.ndarray:
    """Reads a semantic label PNG.

    Args:
        path: of an 8 bit greyscale picture, the values being labels.
        size: (H, W) that it must have.
        num_classes: labels must be below, or equal to ``ignore_label``; None: unchecked.
        ignore_label: value of pixels without a label.

    Returns:
        (H, W) uint8, with 255 for ``ignore_label``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no label map of this size and kind, or holds other labels.
    """
    mode, labels = open_label_png(path)
    if mode != "L":
        raise ValueError(f"{path}: {_wrong_mode(mode, labels)}")
    if labels.shape != size:
        raise ValueError(
            f"{path} is {labels.shape[1]}x{labels.shape[0]} (width x height), but its picture is "
            f"{size[1]}x{size[0]}"
        )
    ignored = labels == ignore_label
    if num_classes is not None:
        wrong = (labels >= num_classes) & ~ignored
        if wrong.any():
            check_classes(np.unique(labels[wrong]), range(num_classes), path, "label")
    if ignore_label != IGNORE_LABEL:
        labels[ignored] = IGNORE_LABEL
    return labels


def _wrong_mode(mode: str, values: np.ndarray) -> str:
    """What is wrong with an image that is not 8 bit greyscale, and what to do about it."""
    if values.ndim == 3:
        return (
            f"a label map has one channel, this one has {values.shape[2]} (mode {mode}); write "
            f"the class index of each pixel into an 8 bit greyscale PNG"
        )
    kind = _MODES.get(mode, "16 or 32 bit greyscale")
    return (
        f"a label map is an 8 bit greyscale PNG, this one is a {kind} image (mode {mode}; largest "
        f"value {float(values.max()):g}); convert the folder with "
        f"`python datasets/prepare_label_pngs.py IN OUT`"
    )


def check_classes(values: np.ndarray, known: Sequence[int] | None, path: str, what: str) -> None:
    """Raises ValueError, naming file and value, unless all values are known ids.

    Args:
        values: ids.
        known: sorted ids; None allows any that is not negative.
        path: of the file, for messages.
        what: the ids are, for messages.
    """
    wrong = values < 0 if known is None else ~np.isin(values, known)
    if wrong.any():
        allowed = "must not be negative"
        if known is not None:
            gaps = known[-1] - known[0] >= len(known) if known else True
            ids = ", ".join(map(str, known)) if gaps else f"{known[0]} to {known[-1]}"
            allowed = f"there are {len(known)}, {ids}"
        raise ValueError(f"{path}: {what} {int(values[wrong][0])}, but {allowed}")


def decode_annotations(
    annotations: Sequence[dict[str, Any]], size: tuple[int, int], record: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Rasterises instance annotations.

    Args:
        annotations: with ``category_id``, ``segmentation`` (polygons; RLE, compressed or not;
            or a (H, W) mask) and perhaps ``iscrowd``; crowds are left out.
        size: (H, W) of the picture.
        record: of the data set, for messages.

    Returns:
        masks ((N, H, W) bool) and classes ((N,) int64).

    Raises:
        ValueError: naming the picture, for a segmentation that is missing or has no such form
            or size.
    """
    kept = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    masks = np.zeros((len(kept), *size), bool)
    for mask, annotation in zip(masks, kept):
        mask[...] = _decode(annotation.get("segmentation"), size, record["file_name"])
    return masks, np.array([annotation["category_id"] for annotation in kept], np.int64)


def _decode(segmentation: Any, size: tuple[int, int], path: str) -> np.ndarray:
    height, width = size
    if isinstance(segmentation, list) and segmentation:
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
            raise ValueError(f"{path}: a polygon needs three or more points, as [x0, y0, x1, …]")
        polygons = [np.asarray(polygon, np.float64).tolist() for polygon in segmentation]
        rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    elif isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != size:
            raise ValueError(
                f"{path}: an RLE of size {tuple(segmentation['size'])} (height, width), but the "
                f"picture is {size}"
            )
        rle = segmentation
        if isinstance(rle["counts"], list):
            rle = mask_util.frPyObjects(rle, height, width)
    elif isinstance(segmentation, np.ndarray):
        if segmentation.shape != size:
            raise ValueError(f"{path}: a mask of size {segmentation.shape}, the picture is {size}")
        return segmentation.astype(bool)
    else:
        raise ValueError(
            f"{path}: an instance without a mask (segmentation is {segmentation!r}); K-Net learns "
            f"from masks, boxes are not enough"
        )
    return mask_util.decode(rle).astype(bool)


def transform_labels(transforms: T.TransformList, labels: np.ndarray) -> np.ndarray:
    """Moves a label map (H, W) along with its picture, by nearest neighbour; keeps the dtype."""
    if labels.dtype == np.uint8:
        return np.array(transforms.apply_segmentation(labels))
    # Detectron2 resizes other types as float tensors; every label here is exact in float32.
    moved = transforms.apply_segmentation(labels.astype(np.float32))
    return np.ascontiguousarray(moved).astype(labels.dtype)


def transform_masks(
    transforms: T.TransformList, masks: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Moves masks along with their picture, by nearest neighbour.

    Args:
        transforms: of the picture.
        masks: (N, H, W) bool.
        size: (H, W) of the picture afterwards.

    Returns:
        (N, H, W) bool.
    """
    if not len(masks):
        return np.zeros((0, *size), bool)
    # Nearest neighbour copies values, so the bits of a byte carry eight masks at once.
    planes = np.packbits(masks, axis=0)
    moved = np.stack([transforms.apply_segmentation(plane) for plane in planes])
    return np.unpackbits(moved, axis=0, count=len(masks)).view(bool)
