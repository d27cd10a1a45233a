"""Images of a report: a small photo and its segments as SVG paths, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image
from scipy.ndimage import distance_transform_cdt

from knet.data.images import MAX_PIXELS, read_picture
from knet.report.collect import ReportImage
from knet.report.segments import Segment

# 200 images make 16 MB.
BYTES_AN_IMAGE = 80_000

# Pixels of the longer side; the first that fits the budget is taken.
_SIDES = (512, 400, 320, 240, 160, 96, 64)
# Of markup around an outline.
_BYTES_A_SEGMENT = 250
# Smaller pictures keep every pixel: they are shown enlarged.
_LOSSLESS_SIDE = 160


@dataclass(frozen=True)
class OutlinedSegment:
    """A segment as it is drawn.

    Attributes:
        segment: with what became of it.
        share: of the picture's pixels.
        path: SVG outline in pixels of the drawing.
        at: (x, y) for its name.
    """

    segment: Segment
    share: float
    path: str
    at: tuple[int, int]


@dataclass(frozen=True)
class OutlinedImage:
    """An image as it is drawn.

    Attributes:
        name: of its file.
        image: of which it is.
        width, height: of the drawing, in pixels.
        photo: a ``data:`` address.
        truth, predicted: from the largest to the smallest.
    """

    name: str
    image: ReportImage
    width: int
    height: int
    photo: str
    truth: list[OutlinedSegment]
    predicted: list[OutlinedSegment]

    @property
    def num_bytes(self) -> int:
        """About what it takes in the page."""
        segments = [*self.truth, *self.predicted]
        return len(self.photo) + sum(len(s.path) + _BYTES_A_SEGMENT for s in segments)


def draw_image(
    image: ReportImage, max_bytes: int = BYTES_AN_IMAGE, *, max_pixels: int = MAX_PIXELS
) -> OutlinedImage:
    """Photo and outlines, as large as the budget allows but no larger than 512 pixels.

    Raises:
        DataError: naming the picture that cannot be read.
    """
    pixels = read_picture(image.record, image_format="RGB", max_pixels=max_pixels)
    longer = max(pixels.shape[:2])
    # no enlargement
    for side in sorted({min(side, longer) for side in _SIDES}, reverse=True):
        drawn = _draw(image, pixels, side / longer)
        if drawn.num_bytes <= max_bytes:
            break
    return drawn


def _draw(image: ReportImage, pixels: np.ndarray, scale: float) -> OutlinedImage:
    height, width = (max(1, round(n * scale)) for n in pixels.shape[:2])
    photo = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    lossless = max(width, height) <= _LOSSLESS_SIDE
    photo.save(stream, "WEBP", quality=80, method=4, lossless=lossless)
    return OutlinedImage(
        name=Path(image.record["file_name"]).name,
        image=image,
        width=width,
        height=height,
        photo="data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode(),
        truth=_outlined(image.truth.segments, (height, width)),
        predicted=_outlined(image.predicted.segments, (height, width)),
    )


def _outlined(segments: Sequence[Segment], size: tuple[int, int]) -> list[OutlinedSegment]:
    found = []
    for segment in sorted(segments, key=lambda segment: -segment.area):
        whole = mask_util.decode(segment.rle).astype(bool)
        mask = shrink_labels(whole, size)
        if mask.any():  # else thinner than a pixel of the drawing
            share = segment.area / whole.size
            found.append(OutlinedSegment(segment, share, outline(mask), inner_point(mask)))
    return found


def outline(mask: np.ndarray) -> str:
    """The ``d`` of an SVG path around a mask, to be filled by the even-odd rule.

    Args:
        mask: (H, W) bool.

    Returns:
        Exact outlines in units of pixels, holes included; "" for an empty mask.
    """
    padded = np.pad(mask.astype(np.int8), 1)
    above, below = padded[:-1], padded[1:]
    # Where lines of the border meet at a right angle: an odd number of the four pixels around.
    # Where two pixels touch by their corners, two such angles meet.
    corners = (above[:, :-1] + above[:, 1:] + below[:, :-1] + below[:, 1:]) % 2
    touching = (above[:, :-1] == below[:, 1:]) & (above[:, 1:] == below[:, :-1])
    corners += 2 * (touching & (above[:, :-1] != above[:, 1:]))
    ys, xs = np.nonzero(corners)
    counts = corners[ys, xs]
    ys, xs = np.repeat(ys, counts), np.repeat(xs, counts)
    # In each row of corners, a line runs from the first to the second, the third to the fourth, …
    # The same holds in each column.
    by_column = np.lexsort((ys, xs))
    rank = np.empty_like(by_column)
    rank[by_column] = np.arange(len(by_column))
    vertical = by_column[rank ^ 1].tolist()
    x, y = xs.tolist(), ys.tolist()
    done = [False] * len(x)
    parts = []
    for start in range(len(x)):
        if done[start]:
            continue
        parts.append(f"M{x[start]} {y[start]}")
        here = start
        while True:
            across = here ^ 1
            done[here] = done[across] = True
            parts.append(f"h{x[across] - x[here]}")
            here = vertical[across]
            if here == start:
                break
            parts.append(f"v{y[here] - y[across]}")
        parts.append("z")
    return "".join(parts)


def inner_point(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of a pixel deep inside a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    box = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    depth = distance_transform_cdt(box)[1:-1, 1:-1]
    deepest = np.argwhere(depth == depth.max())
    # of a plateau the place in its middle
    y, x = deepest[len(deepest) // 2].tolist()
    return left + x, top + y


def shrink_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a map (H, W) that are nearest to those of a smaller one of ``size``."""
    rows, columns = (
        ((np.arange(small) + 0.5) * large / small).astype(int)
        for small, large in zip(size, labels.shape)
    )
    return labels[rows][:, columns]
