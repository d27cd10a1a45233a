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

    def add_pixels(self, pixels: np.ndarray, y: int, x: int) -> None:
        """Take (h, w, 3) uint8 of the picture, and where they lie."""
        step = self._step
        height, width = pixels.shape[:2]
        # each small pixel is of the piece that has its corner
        top, left = -(-y // step), -(-x // step)
        bottom, right = -(-(y + height) // step), -(-(x + width) // step)
        if bottom <= top or right <= left:
            return
        box = (
            left * step - x,
            top * step - y,
            min(right * step - x, width),
            min(bottom * step - y, height),
        )
        image = Image.fromarray(np.ascontiguousarray(pixels))
        reduced = image.resize((right - left, bottom - top), Image.Resampling.BOX, box=box)
        self._pixels[top:bottom, left:right] = np.asarray(reduced)

    def add_parts(self, parts: np.ndarray, y: int) -> None:
        """Take (h, W) parts of whole rows from row y on."""
        step = self._step
        top, bottom = -(-y // step), -(-(y + len(parts)) // step)
        self._parts[top:bottom] = parts[top * step - y :: step, ::step]

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
