"""Defects of an instance's mask: polygons, RLE (compressed or not), arrays.

Broken RLE is found before pycocotools decodes it, which would crash or read foreign memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from knet.data.annotations.polygons import polygon_errors, polygon_warnings, polygon_within
from knet.data.defects import Defect, make_defect

__all__ = [
    "form_defect",
    "rle_counts",
    "rle_defect",
    "segmentation_errors",
    "segmentation_warnings",
]

_TOLERANCE = 1.0  # pixels that a polygon may lie beyond the picture's border
_LARGEST_RUN_DIGITS = 7  # of five bits: enough for 2**34 pixels


def segmentation_errors(
    segmentation: Any, size: tuple[int, int], file: str, record: str
) -> list[Defect]:
    """What makes a mask unusable.

    Args:
        segmentation: polygons, an RLE dict, or an (H, W) array.
        size: (H, W) of the picture, in pixels.
        file: to mend.
        record: image and annotation, for :class:`Defect`.

    Returns:
        Errors; none if pycocotools can decode the mask.
    """
    defect = form_defect(segmentation, size, file, record)
    if defect is not None:
        return [defect]
    if isinstance(segmentation, dict):
        defect = rle_defect(segmentation, file, record)
        return [] if defect is None else [defect]
    if isinstance(segmentation, np.ndarray):
        return []
    return [
        make_defect(kind, file, record, _part(index, segmentation) + problem)
        for index, polygon in enumerate(segmentation)
        for kind, problem in polygon_errors(polygon, size, tolerance=_TOLERANCE)
    ]


def segmentation_warnings(
    segmentation: Any, size: tuple[int, int], file: str, record: str
) -> list[Defect]:
    """What looks wrong with a mask that :func:`segmentation_errors` lets pass; same arguments."""
    if not isinstance(segmentation, list):
        return []
    found = [
        make_defect(kind, file, record, _part(index, segmentation) + problem, severity="warning")
        for index, polygon in enumerate(segmentation)
        for kind, problem in polygon_warnings(polygon, size, tolerance=_TOLERANCE)
    ]
    nested = polygon_within(segmentation)
    if nested is not None:
        problem = f"polygon {nested[0] + 1} of {len(segmentation)} lies within polygon "
        problem += f"{nested[1] + 1}: it is filled, no hole"
        found.append(make_defect("polygon-within-polygon", file, record, problem))
    return found


def _part(index: int, polygons: list[Any]) -> str:
    return f"polygon {index + 1} of {len(polygons)}: " if len(polygons) > 1 else ""


def form_defect(
    segmentation: Any, size: tuple[int, int] | None, file: str, record: str
) -> Defect | None:
    """What is wrong with the form of a mask, without a look at its numbers.

    Args:
        segmentation, file, record: as in :func:`segmentation_errors`.
        size: (H, W) of the picture; None if it is not known.
    """

    def defect(kind: str, problem: str) -> Defect:
        return make_defect(kind, file, record, problem)

    if isinstance(segmentation, np.ndarray):
        if size is None or segmentation.shape == size:
            return None
        problem = f"a mask of size {segmentation.shape}, the picture is {size} (height, width)"
        return defect("mask-size", problem)
    if isinstance(segmentation, dict):
        return _rle_form_defect(segmentation, size, defect)
    if not isinstance(segmentation, list) or not segmentation:
        shown = f"`segmentation` is {_shown(segmentation)}"
        if segmentation is None or segmentation in ([], ""):
            return defect("missing-segmentation", f"an instance without a mask ({shown})")
        return defect("polygon-coordinates", f"{shown}: neither polygons nor RLE")
    for polygon in segmentation:
        if not isinstance(polygon, (list, tuple, np.ndarray)):
            problem = f"a polygon must be a list of numbers, not {_shown(polygon)}"
            if isinstance(polygon, (int, float)):
                problem = "the polygon is not in a list: [[x0, y0, …]] is meant, not [x0, y0, …]"
            return defect("polygon-coordinates", problem)
        if len(polygon) < 6:
            problem = f"a polygon needs three or more points, this one has {len(polygon) // 2}"
            return defect("polygon-empty", problem)
        if len(polygon) % 2:
            problem = f"a polygon with an odd number of coordinates ({len(polygon)})"
            return defect("polygon-coordinates", problem)
    return None


def _rle_form_defect(rle: dict[str, Any], size: tuple[int, int] | None, defect: Any) -> Any:
    missing = [key for key in ("size", "counts") if key not in rle]
    if missing:
        return defect("rle-invalid", f"the RLE lacks {', '.join(missing)}")
    given = rle["size"]
    if (
        not isinstance(given, (list, tuple))
        or len(given) != 2
        or not all(isinstance(v, (int, np.integer)) and v > 0 for v in given)
    ):
        return defect("rle-invalid", f"the RLE's size is {_shown(given)}, not [height, width]")
    if not isinstance(rle["counts"], (list, str, bytes)):
        return defect("rle-invalid", f"the RLE's counts are {_shown(rle['counts'])}")
    if size is not None and tuple(given) != size:
        problem = f"an RLE of size {tuple(given)} (height, width), but the picture is {size}"
        return defect("rle-size", problem)
    return None


def rle_defect(rle: dict[str, Any], file: str, record: str) -> Defect | None:
    """What is wrong with the runs of an RLE whose form is right."""
    height, width = rle["size"]
    try:
        counts = rle_counts(rle["counts"])
    except ValueError as error:
        return make_defect("rle-invalid", file, record, f"the RLE cannot be decoded: {error}")
    problem = ""
    if (counts < 0).any():
        problem = f"the RLE has a run of {int(counts.min())} pixels"
    elif counts.sum() != height * width:
        problem = (
            f"the RLE's runs cover {int(counts.sum())} pixels, its size {height}x{width} has "
            f"{height * width}"
        )
    return make_defect("rle-invalid", file, record, problem) if problem else None


def rle_counts(counts: list[int] | str | bytes) -> np.ndarray:
    """The run lengths of an RLE, column by column, beginning with background.

    Args:
        counts: run lengths, or COCO's text form of them: digits of five bits, the lowest first,
            48 added; 32 marks that one more follows, the last one's 16 is the sign. From the
            fourth run on the difference to the run before the last is written.

    Returns:
        (R,) int64; nothing is said about their signs or their sum.

    Raises:
        ValueError: if the text is not of this form, or the runs are no whole numbers.
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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
