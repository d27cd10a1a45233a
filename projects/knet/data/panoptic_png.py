"""COCO panoptic PNGs: colour codes to segment ids to rows of ``segments_info``.

The identifier of a segment is ``R + 256 G + 65536 B``; 0 marks void (unlabelled) pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from knet.data.defects import Defect, Defects, failure, raise_first
from knet.data.images import MAX_PIXELS, has_deep_channels, save_image
from knet.data.label_png import open_png

LARGEST_ID = 2**24 - 1  # three bytes of colour
_MOST_IDS = 20  # unknown ids of a PNG that are named one by one


def read_panoptic_png(
    path: str,
    record: str = "",
    size: tuple[int, int] | None = None,
    picture: str = "",
    *,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Reads a panoptic PNG: (H, W) uint32, segment ids; 0 is void.

    Args:
        path: of an 8 bit RGB (or RGBA, alpha is ignored) PNG.
        record, picture: that it belongs to, for messages.
        size: (H, W) of its picture; a PNG of another number of pixels is not decoded.
        max_pixels: a larger PNG is refused, if no size is given.

    Raises:
        DataError: as of :func:`open_png`, or it has no colour channels of 8 bit.
    """
    return inspect_panoptic_png(path, record, size, picture, max_pixels=max_pixels)[0]


def inspect_panoptic_png(
    path: str,
    record: str,
    size: tuple[int, int] | None = None,
    picture: str = "",
    *,
    max_pixels: int = MAX_PIXELS,
) -> tuple[np.ndarray, bool]:
    """The ids of a panoptic PNG, as :func:`read_panoptic_png`, and whether all is opaque."""
    kind = ("panoptic-png-mode", "panoptic PNG")
    with open_png(path, record, size, picture, kind=kind, max_pixels=max_pixels) as image:
        mode, deep = image.mode, has_deep_channels(image)
        # With a fourth byte the picture *is* an array of little-endian integers, which saves
        # three widened copies; the mask removes the alpha byte.
        rgba = np.array(image if mode == "RGBA" else image.convert("RGBA"))
    if mode not in ("RGB", "RGBA"):
        problem = (
            f"a panoptic PNG holds segment ids in R, G and B, but this one is in mode {mode}; a "
            f"semantic label map is given as sem_seg_root instead"
        )
        raise failure("panoptic-png-mode", path, record, problem)
    if deep:
        problem = "has 16 bit a channel, of which the lower 8 would be cut"
        raise failure("panoptic-png-mode", path, record, problem)
    opaque = mode == "RGB" or bool((rgba[..., 3] == 255).all())
    ids = rgba.view("<u4")[..., 0]
    ids &= 0xFFFFFF
    return ids.astype(np.uint32, copy=False), opaque


def write_panoptic_png(path: str, ids: np.ndarray) -> None:
    """Writes segment ids (H, W), integers in [0, 2**24), as a panoptic PNG, whole or not at all."""
    save_image(path, panoptic_colours(ids))


def panoptic_colours(ids: np.ndarray) -> np.ndarray:
    """The (H, W, 3) uint8 colours of segment ids (H, W), integers in [0, 2**24)."""
    packed = np.ascontiguousarray(ids, dtype="<u4")
    rgb = packed.view(np.uint8).reshape(*packed.shape, 4)[..., :3]
    return np.ascontiguousarray(rgb)


def ids_to_rows(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], path: str, record: str = ""
) -> np.ndarray:
    """Replaces each segment id by 1 + its position in ``segments_info``.

    Args:
        ids: (H, W) uint32, as :func:`read_panoptic_png` gives.
        segments: the image's ``segments_info``, K dicts with ``"id"``.
        path, record: of the PNG, for messages.

    Returns:
        (H, W) integers in [0, K], uint8 if K < 256 else int32; 0 is void.

    Raises:
        DataError: if the PNG holds an id that no segment has, or an id is 0 or twice there.
    """
    known = np.array([0] + [int(segment["id"]) for segment in segments], np.uint32)
    order = np.argsort(known, kind="stable")
    ordered = known[order]
    # A search in the short list of ids is several times faster than sorting all the pixels.
    position = np.searchsorted(ordered, ids)
    position[position == len(ordered)] = 0
    if (ordered[1:] == ordered[:-1]).any() or (ordered[position] != ids).any():
        raise_first(segment_defects(ids, segments, path, record)[0])
    dtype = np.uint8 if len(known) <= 256 else np.int32
    return order.astype(dtype)[position]


def segment_defects(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], path: str, record: str
) -> tuple[list[Defect], dict[int, int]]:
    """All that is wrong between a PNG and its ``segments_info``, and the pixels of each id.

    Args: as of :func:`ids_to_rows`, whose errors are among the defects; the others are segments
        without a pixel and ``area`` values that are no counts of pixels.
    """
    found = Defects(path, record)
    known = {0}
    for segment in segments:
        key = int(segment["id"])
        if key == 0:
            found.add("segment-id-zero", "segment id 0 is reserved for void")
        elif key in known:
            found.add("duplicate-segment-id", f"segment id {key} is twice in its segments_info")
        known.add(key)
    values, counts = np.unique(ids, return_counts=True)
    pixels = dict(zip(values.tolist(), counts.tolist()))
    unknown = {value: count for value, count in pixels.items() if value not in known}
    if len(unknown) > _MOST_IDS:
        start = f"{len(unknown)} segment ids ({sum(unknown.values())} pixels) are not in its"
        shown = ", ".join(map(str, list(unknown)[:3]))
        found.add("png-id-unknown", f"{start} segments_info: {shown}, …")
    else:
        for value, count in unknown.items():
            problem = f"segment id {value} ({count} pixels) is not in its segments_info"
            found.add("png-id-unknown", problem)
    for segment in segments:
        count, name = pixels.get(int(segment["id"]), 0), f"segment {segment['id']}"
        if segment["id"] and not count:
            found.add("segment-without-pixels", f"{name} of its segments_info has no pixel")
        elif segment.get("area", count) != count:
            found.add("wrong-area", f"{name} has {count} pixels, but its area is {segment['area']}")
    return found, pixels
