"""COCO panoptic PNGs: colour codes to segment ids to rows of ``segments_info``.

The identifier of a segment is ``R + 256 G + 65536 B``; 0 marks void (unlabelled) pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from knet.data.coco_file import number_defects
from knet.data.defects import DataError, Defect, Defects, make_defect, raise_first
from knet.data.images import has_deep_channels, save_image
from knet.data.label_png import open_png

LARGEST_ID = 2**24 - 1  # three bytes of colour
_MOST_IDS = 20  # unknown ids of a PNG that are named one by one


def read_panoptic_png(
    path: str, record: str = "", size: tuple[int, int] | None = None, picture: str = ""
) -> np.ndarray:
    """Reads a panoptic PNG.

    Args:
        path: of an 8 bit RGB (or RGBA, alpha is ignored) PNG.
        record: that it belongs to, for messages.
        size: (H, W) of its picture; a PNG of another number of pixels is not decoded.
        picture: its name, for messages.

    Returns:
        (H, W) uint32, segment ids; 0 is void.

    Raises:
        DataError: naming the file and the record, if it is missing (also a FileNotFoundError),
            cannot be read, is no PNG, has no colour channels of 8 bit, or more or fewer pixels
            than its picture.
    """
    return inspect_panoptic_png(path, record, size, picture)[0]


def inspect_panoptic_png(
    path: str, record: str, size: tuple[int, int] | None = None, picture: str = ""
) -> tuple[np.ndarray, bool]:
    """The ids of a panoptic PNG, as :func:`read_panoptic_png`, and whether all is opaque."""
    with open_png(path, record, size, picture, kind=("panoptic-png-mode", "panoptic PNG")) as image:
        mode, deep = image.mode, has_deep_channels(image)
        # With a fourth byte the picture *is* an array of little-endian integers, which saves
        # three widened copies; the mask removes the alpha byte.
        rgba = np.array(image if mode == "RGBA" else image.convert("RGBA"))
    if mode not in ("RGB", "RGBA"):
        problem = (
            f"a panoptic PNG holds segment ids in R, G and B, but this one is in mode {mode}; a "
            f"semantic label map is given as sem_seg_root instead"
        )
        raise DataError(make_defect("panoptic-png-mode", path, record, problem))
    if deep:
        problem = "has 16 bit a channel, of which the lower 8 would be cut"
        raise DataError(make_defect("panoptic-png-mode", path, record, problem))
    opaque = mode == "RGB" or bool((rgba[..., 3] == 255).all())
    ids = rgba.view("<u4")[..., 0]
    ids &= 0xFFFFFF
    return ids.astype(np.uint32, copy=False), opaque


def write_panoptic_png(path: str, ids: np.ndarray) -> None:
    """Writes segment ids (H, W), integers in [0, 2**24), as a panoptic PNG, whole or not at all."""
    packed = np.ascontiguousarray(ids, dtype="<u4")
    rgb = packed.view(np.uint8).reshape(*packed.shape, 4)[..., :3]
    save_image(path, np.ascontiguousarray(rgb))


def ids_to_rows(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], path: str, record: str = ""
) -> np.ndarray:
    """Replaces each segment id by 1 + its position in ``segments_info``.

    Args:
        ids: (H, W) uint32, as :func:`read_panoptic_png` gives.
        segments: the image's ``segments_info``, K dicts with ``"id"``.
        path: of the PNG, for messages.
        record: that it belongs to, for messages.

    Returns:
        (H, W) integers in [0, K], uint8 if K < 256 else int32; 0 is void.

    Raises:
        DataError: if the PNG holds an id that no segment has, or an id is 0 or twice there.
    """
    known = np.array([0] + [int(segment["id"]) for segment in segments], np.uint32)
    order = np.argsort(known, kind="stable")
    ordered = known[order]
    if (ordered[1:] == ordered[:-1]).any():
        raise_first(_id_defects(segments, path, record))
    # A search in the short list of ids is several times faster than sorting all the pixels.
    position = np.searchsorted(ordered, ids)
    position[position == len(ordered)] = 0
    unknown = ordered[position] != ids
    if unknown.any():
        raise_first(_unknown_defects(*np.unique(ids[unknown], return_counts=True), path, record))
    dtype = np.uint8 if len(known) <= 256 else np.int32
    return order.astype(dtype)[position]


def segment_defects(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], path: str, record: str
) -> tuple[list[Defect], dict[int, int]]:
    """All that is wrong between a PNG and its ``segments_info``, and the pixels of each id.

    Args: as of :func:`ids_to_rows`, whose errors are among the defects; the others are segments
        without a pixel and ``area`` values that are no counts of pixels.
    """
    values, counts = np.unique(ids, return_counts=True)
    pixels = dict(zip(values.tolist(), counts.tolist()))
    found = _id_defects(segments, path, record)
    known = [0, *(int(segment["id"]) for segment in segments)]
    unknown = ~np.isin(values, np.array(known, np.uint32))
    found += _unknown_defects(values[unknown], counts[unknown], path, record)
    for segment in segments:
        count = pixels.get(int(segment["id"]), 0)
        if segment["id"] and not count:
            problem = f"segment {segment['id']} of its segments_info has no pixel"
            found.add("segment-without-pixels", path, record, problem)
        elif segment.get("area", count) != count:
            problem = f"segment {segment['id']} has {count} pixels, but its area is "
            found.add("wrong-area", path, record, problem + str(segment["area"]))
    return found, pixels


def segment_key_defects(
    segments: Sequence[Mapping[str, Any]], path: str, record: str
) -> list[Defect]:
    """What keeps segments from being read at all: a key that is missing, an id that is none."""
    found = Defects()
    for position, segment in enumerate(segments):
        name = ", ".join(part for part in (record, f"segments_info[{position}]") if part)
        wrong = number_defects(segment, ("id", "category_id"), path, name)
        found += wrong
        if not wrong and not 0 <= segment["id"] <= LARGEST_ID:
            problem = f"id is {segment['id']}, not a whole number up to {LARGEST_ID}"
            found.add("bad-value", path, name, problem)
    return found


def _id_defects(segments: Sequence[Mapping[str, Any]], path: str, record: str) -> Defects:
    seen: set[int] = set()
    found = Defects()
    for segment in segments:
        key = int(segment["id"])
        if key == 0:
            found.add("segment-id-zero", path, record, "segment id 0 is reserved for void")
        elif key in seen:
            problem = f"segment id {key} is twice in its segments_info"
            found.add("duplicate-segment-id", path, record, problem)
        seen.add(key)
    return found


def _unknown_defects(
    values: np.ndarray, counts: np.ndarray, path: str, record: str
) -> list[Defect]:
    problems = [
        f"segment id {value} ({count} pixels) is not in its segments_info"
        for value, count in zip(values.tolist(), counts.tolist())
    ]
    if len(problems) > _MOST_IDS:
        shown = ", ".join(map(str, values[:3].tolist()))
        problems = [
            f"{len(values)} segment ids ({counts.sum()} pixels) are not in its segments_info: "
            f"{shown}, …"
        ]
    return [make_defect("png-id-unknown", path, record, problem) for problem in problems]
