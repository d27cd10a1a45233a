"""The mask of one object: polygons, RLE (compressed or not) or an array; what makes it unusable.

Broken RLE is found before pycocotools decodes it, which would crash or read foreign memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from knet.data.defects import Defect, make_defect

TOLERANCE = 1.0  # pixels that a polygon may lie beyond the picture's border
_LARGEST_RUN_DIGITS = 7  # of five bits: enough for 2**34 pixels
_SAME_MASK = 0.98  # intersection over union of two masks that mean one object

Problem = tuple[str, str]  # kind of defect, problem


def encode_segmentation(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The compressed RLE of a mask without errors; arguments as of :func:`segmentation_errors`."""
    if isinstance(segmentation, np.ndarray):
        return mask_util.encode(np.asfortranarray(segmentation, dtype=np.uint8))
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *size)
        return segmentation
    polygons = [np.asarray(polygon, np.float64).tolist() for polygon in segmentation]
    return mask_util.merge(mask_util.frPyObjects(polygons, *size))


def segmentation_errors(
    segmentation: Any, size: tuple[int, int] | None, file: str, record: str
) -> list[Defect]:
    """What makes a mask unusable: errors, none if pycocotools can decode it.

    Args:
        segmentation: polygons, an RLE dict, or an (H, W) array.
        size: (H, W) of the picture, in pixels; None if it is not known.
        file, record: to mend.
    """
    problem = _form_problem(segmentation, size)
    if problem is None and isinstance(segmentation, dict):
        problem = _rle_problem(segmentation)
    found = [] if problem is None else [problem]
    if not found and size is not None and isinstance(segmentation, list):
        for index, polygon in enumerate(segmentation):
            problem = _polygon_problem(polygon, size)
            if problem is not None:
                found.append((problem[0], part(index, segmentation) + problem[1]))
    return [make_defect(kind, file, record, text, severity="error") for kind, text in found]


def part(index: int, polygons: Sequence[Any]) -> str:
    """The start of a problem with one polygon of an object."""
    return f"polygon {index + 1} of {len(polygons)}: " if len(polygons) > 1 else ""


def _form_problem(segmentation: Any, size: tuple[int, int] | None) -> Problem | None:
    """What is wrong with the form of a mask, without a look at its numbers."""
    if isinstance(segmentation, np.ndarray):
        if size is None or segmentation.shape == size:
            return None
        problem = f"a mask of size {segmentation.shape}, the picture is {size} (height, width)"
        return "mask-size", problem
    if isinstance(segmentation, dict):
        return _rle_form_problem(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        shown = f"`segmentation` is {_shown(segmentation)}"
        if segmentation is None or segmentation in ([], ""):
            return "missing-segmentation", f"an instance without a mask ({shown})"
        return "polygon-coordinates", f"{shown}: neither polygons nor RLE"
    for polygon in segmentation:
        if not isinstance(polygon, (list, tuple, np.ndarray)):
            problem = f"a polygon must be a list of numbers, not {_shown(polygon)}"
            if isinstance(polygon, (int, float)):
                problem = "the polygon is not in a list: [[x0, y0, …]] is meant, not [x0, y0, …]"
            return "polygon-coordinates", problem
        if len(polygon) < 6:
            problem = f"a polygon needs three or more points, this one has {len(polygon) // 2}"
            return "polygon-empty", problem
        if len(polygon) % 2:
            problem = f"a polygon with an odd number of coordinates ({len(polygon)})"
            return "polygon-coordinates", problem
    return None


def _rle_form_problem(rle: dict[str, Any], size: tuple[int, int] | None) -> Problem | None:
    missing = [key for key in ("size", "counts") if key not in rle]
    if missing:
        return "rle-invalid", f"the RLE lacks {', '.join(missing)}"
    given = rle["size"]
    if (
        not isinstance(given, (list, tuple))
        or len(given) != 2
        or not all(isinstance(v, (int, np.integer)) and v > 0 for v in given)
    ):
        return "rle-invalid", f"the RLE's size is {_shown(given)}, not [height, width]"
    if not isinstance(rle["counts"], (list, str, bytes)):
        return "rle-invalid", f"the RLE's counts are {_shown(rle['counts'])}"
    if size is not None and tuple(given) != size:
        problem = f"an RLE of size {tuple(given)} (height, width), but the picture is {size}"
        return "rle-size", problem
    return None


def _rle_problem(rle: dict[str, Any]) -> Problem | None:
    """What is wrong with the runs of an RLE whose form is right."""
    height, width = rle["size"]
    try:
        counts = rle_counts(rle["counts"])
    except ValueError as error:
        return "rle-invalid", f"the RLE cannot be decoded: {error}"
    if (counts < 0).any():
        return "rle-invalid", f"the RLE has a run of {int(counts.min())} pixels"
    if counts.sum() != height * width:
        problem = (
            f"the RLE's runs cover {int(counts.sum())} pixels, its size {height}x{width} has "
            f"{height * width}"
        )
        return "rle-invalid", problem
    return None


def rle_counts(counts: list[int] | str | bytes) -> np.ndarray:
    """The run lengths of an RLE, (R,) int64, column by column, beginning with background.

    COCO's text form of them is digits of five bits, the lowest first, 48 added; 32 marks that one
    more follows, the last one's 16 is the sign. From the fourth run on the difference to the run
    before the last is written. Nothing is said about their signs or their sum.

    Raises:
        ValueError: the text is not of this form, or the runs are no whole numbers.
    """
    if isinstance(counts, list):
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in counts):
            raise ValueError("counts are not all whole numbers")
        if any(abs(v) >= 2**40 for v in counts):
            raise ValueError("a run is longer than any picture")
        return np.array(counts, np.int64)
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise ValueError("characters that no RLE has") from error
    digits = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if ((digits < 0) | (digits > 63)).any():
        raise ValueError("characters that no RLE has")
    if not len(digits):
        return digits
    last = digits & 32 == 0
    if not last[-1]:
        raise ValueError("the text ends in the middle of a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LARGEST_RUN_DIGITS:
        raise ValueError("a run is longer than any picture")
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & 31) << (5 * places), starts)
    negative = digits[ends] & 16 != 0
    values[negative] -= np.int64(1) << (5 * lengths[negative])
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _polygon_problem(polygon: Sequence[float], size: tuple[int, int]) -> Problem | None:
    """What makes a polygon [x0, y0, x1, y1, …] of three or more points unusable."""
    try:
        values = np.asarray(polygon)
    except ValueError:  # lists of several lengths within the list
        values = np.array(None)
    # None would become NaN, "9" a number, True 1.
    if values.ndim != 1 or values.dtype.kind not in "iuf" or bool in set(map(type, polygon)):
        return "polygon-coordinates", "coordinates that are no numbers"
    if not np.isfinite(values).all():
        return "polygon-coordinates", f"a coordinate is {values[~np.isfinite(values)][0]}"
    points = values.reshape(-1, 2)
    spans = list(zip(points.min(axis=0).tolist(), points.max(axis=0).tolist(), size[::-1]))
    what = ""
    if any(high < -TOLERANCE or low > side + TOLERANCE for low, high, side in spans):
        what = "wholly outside"
    # Rasterising walks along each edge: far points would cost time and memory without end.
    elif any(low < -side - TOLERANCE or high > 2 * side + TOLERANCE for low, high, side in spans):
        what = "far outside"
    if what:
        return "polygon-outside", f"the polygon lies {what} the picture ({extent(points, size)})"
    return None


def extent(points: np.ndarray, size: tuple[int, int]) -> str:
    """The spans of a polygon's points (N, 2), for messages; ``size``: (H, W) of the picture."""
    (left, top), (right, low) = points.min(axis=0), points.max(axis=0)
    return f"x {left:g} to {right:g} of {size[1]}, y {top:g} to {low:g} of {size[0]}"


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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
