"""COCO panoptic PNGs: colour codes to segment ids to rows of ``segments_info``.

The identifier of a segment is ``R + 256 G + 65536 B``; 0 marks void (unlabelled) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

__all__ = ["ids_to_rows", "read_panoptic_png", "write_panoptic_png"]


def read_panoptic_png(path: str) -> np.ndarray:
    """Reads a panoptic PNG.

    Args:
        path: of an 8 bit RGB (or RGBA, alpha is ignored) PNG.

    Returns:
        (H, W) uint32, segment ids; 0 is void.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no image, or has no colour channels.
    """
    try:
        with PathManager.open(path, "rb") as stream, Image.open(stream) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise ValueError(
                    f"{path}: a panoptic PNG holds segment ids in R, G and B, but this one is in "
                    f"mode {image.mode}; a semantic label map is given as sem_seg_root instead"
                )
            # With a fourth byte the picture *is* an array of little-endian integers, which saves
            # three widened copies; the mask removes the alpha byte.
            rgba = np.array(image if image.mode == "RGBA" else image.convert("RGBA"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no panoptic PNG at {path}") from error
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    ids = rgba.view("<u4")[..., 0]
    ids &= 0xFFFFFF
    return ids.astype(np.uint32, copy=False)


def write_panoptic_png(path: str, ids: np.ndarray) -> None:
    """Writes segment ids (H, W), integers in [0, 2**24), as a panoptic PNG."""
    packed = np.ascontiguousarray(ids, dtype="<u4")
    rgb = packed.view(np.uint8).reshape(*packed.shape, 4)[..., :3]
    Image.fromarray(np.ascontiguousarray(rgb)).save(path)


def ids_to_rows(ids: np.ndarray, segments: Sequence[dict[str, Any]], path: str) -> np.ndarray:
    """Replaces each segment id by 1 + its position in ``segments_info``.

    Args:
        ids: (H, W) uint32, as :func:`read_panoptic_png` gives.
        segments: the image's ``segments_info``, K dicts with ``"id"``.
        path: of the PNG, for messages.

    Returns:
        (H, W) integers in [0, K], uint8 if K < 256 else int32; 0 is void.

    Raises:
        ValueError: if the PNG holds an id that no segment has, or an id is 0 or twice there.
    """
    known = np.array([0] + [int(segment["id"]) for segment in segments], np.uint32)
    order = np.argsort(known, kind="stable")
    ordered = known[order]
    if (ordered[1:] == ordered[:-1]).any():
        twice = int(ordered[1:][ordered[1:] == ordered[:-1]][0])
        raise ValueError(
            f"{path}: segment id {twice} is "
            + ("reserved for void" if twice == 0 else "twice in its segments_info")
        )
    # A search in the short list of ids is several times faster than sorting all the pixels.
    position = np.searchsorted(ordered, ids)
    position[position == len(ordered)] = 0
    unknown = ordered[position] != ids
    if unknown.any():
        found = np.unique(ids[unknown])
        raise ValueError(
            f"{path}: segment id {int(found[0])} ({int((ids == found[0]).sum())} pixels) is not "
            f"in its segments_info" + (f"; {len(found) - 1} more like it" if len(found) > 1 else "")
        )
    dtype = np.uint8 if len(known) <= 256 else np.int32
    return order.astype(dtype)[position]
