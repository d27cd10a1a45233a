"""A small drawing of a large picture with its segments, made tile by tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from knet_run.tiles.segments import SegmentClass

_LARGEST = 2000  # pixels of the longer side
_ALPHA = 0.5
_SHADES = (1.0, 0.82, 1.18, 0.7)  # of neighbours of one class


class Overview:
    """Collects reduced tiles.

    Args:
        size: (H, W) of the picture.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._step = -(-max(size) // _LARGEST)
        height, width = (-(-side // self._step) for side in size)
        self._pixels = np.zeros((height, width, 3), np.uint8)
        self._parts = np.zeros((height, width), np.uint32)

    def add(self, pixels: np.ndarray, parts: np.ndarray, y: int, x: int) -> None:
        """Take what a tile decides: (h, w, 3) uint8 and (h, w) parts, and where it lies."""
        step = self._step
        # each small pixel is of the tile that has its corner
        top, left = -(-y // step), -(-x // step)
        bottom, right = -(-(y + parts.shape[0]) // step), -(-(x + parts.shape[1]) // step)
        if bottom <= top or right <= left:
            return
        place = slice(top, bottom), slice(left, right)
        box = (left * step - x, top * step - y, right * step - x, bottom * step - y)
        box = (*box[:2], min(box[2], parts.shape[1]), min(box[3], parts.shape[0]))
        image = Image.fromarray(np.ascontiguousarray(pixels))
        reduced = image.resize((right - left, bottom - top), Image.Resampling.BOX, box=box)
        self._pixels[place] = np.asarray(reduced)
        self._parts[place] = parts[box[1] :: step, box[0] :: step]

    def draw(
        self, ids: np.ndarray, classes: np.ndarray, kinds: Sequence[SegmentClass]
    ) -> np.ndarray:
        """(h, w, 3) uint8: the picture under the colours of the classes, outlined.

        Args:
            ids, classes: of the segments, see `knet_run.tiles.join.Joined`.
            kinds: the list of classes.
        """
        colours = np.array([kind.color for kind in kinds], np.float32)[classes]
        things = np.array([kind.is_thing for kind in kinds], bool)[classes]
        shades = np.array(_SHADES, np.float32)[np.arange(len(classes)) % len(_SHADES)]
        colours[things] *= shades[things, None]
        colours = np.concatenate([np.zeros((1, 3), np.float32), colours.clip(0, 255)])
        shown = ids[self._parts]
        out = self._pixels.astype(np.float32)
        there = shown > 0
        out[there] = (1 - _ALPHA) * out[there] + _ALPHA * colours[shown[there]]
        edge = np.zeros(shown.shape, bool)
        edge[:-1] |= shown[1:] != shown[:-1]
        edge[:, :-1] |= shown[:, 1:] != shown[:, :-1]
        out[edge] = 0.35 * out[edge] + 0.65 * 255
        return out.round().astype(np.uint8)
