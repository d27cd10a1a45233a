"""Segment ids and the colours that stand for them in COCO's panoptic PNGs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["OFFSET", "id2rgb", "rgb2id"]

# A segment id is a colour of three bytes, so a pair of ids fits into one 64 bit number.
OFFSET = 256**3


def rgb2id(color: np.ndarray | Sequence[int]) -> np.ndarray | int:
    """Segment ids of COCO's panoptic PNG colours: ``R + 256 G + 256² B``.

    Args:
        color: ``(H, W, 3)`` integer image, or one colour of three numbers.

    Returns:
        ``(H, W)`` ids (int32 for a uint8 image, else the image's type), or one int.
    """
    if isinstance(color, np.ndarray) and color.ndim == 3:
        if color.dtype.itemsize < 4:  # 256 * G would overflow
            color = color.astype(np.int32)
        return color[..., 0] + 256 * color[..., 1] + 256**2 * color[..., 2]
    red, green, blue = (int(value) for value in color[:3])
    return red + 256 * green + 256**2 * blue


def id2rgb(id_map: np.ndarray | int) -> np.ndarray | list[int]:
    """The colours that COCO's panoptic PNGs store for segment ids; inverse of :func:`rgb2id`.

    Args:
        id_map: integer array of any shape, or one id; ids are in ``[0, 256³)``.

    Returns:
        uint8 array of shape ``id_map.shape + (3,)``, or a list of three ints.

    Raises:
        ValueError: an id lies outside the range and would silently become another one.
    """
    ids = np.asarray(id_map)
    if ids.size and (ids.min() < 0 or ids.max() >= OFFSET):
        raise ValueError(
            f"Segment ids must lie in [0, {OFFSET}) to be stored as colours; "
            f"got {ids.min()} to {ids.max()}."
        )
    ids = ids.astype(np.uint32)
    rgb = np.stack([ids & 255, (ids >> 8) & 255, ids >> 16], axis=-1).astype(np.uint8)
    return rgb if isinstance(id_map, np.ndarray) else [int(value) for value in rgb]
