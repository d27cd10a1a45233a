"""Images of a report: a small photo and the outlines of its segments, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from knet.data.images import MAX_PIXELS, read_picture
from knet.report.collect import ReportImage
from knet.report.matching import Outcome
from knet.report.outlines import inner_point, outline, shrink_labels
from knet.report.segments import Segment

__all__ = ["BYTES_AN_IMAGE", "Picture", "Shape", "draw_picture"]

# 200 images make 16 MB.
BYTES_AN_IMAGE = 80_000

# Pixels of the longer side; the first that fits the budget is taken.
_SIDES = (512, 400, 320, 240, 160, 96, 64)
# Of markup around an outline.
_BYTES_A_SHAPE = 250
# Smaller pictures keep every pixel: they are shown enlarged.
_LOSSLESS_SIDE = 160


@dataclass(frozen=True)
class Shape:
    """A segment as it is drawn.

    Attributes:
        label: of its class.
        path: SVG outline in pixels of the drawing.
        at: (x, y) for its name.
        score: in [0, 1], or None.
        status, iou: see :class:`knet.report.matching.Outcome`.
        partner: label of the segment that it was matched with, or None.
        share: of the picture's pixels.
    """

    label: int
    path: str
    at: tuple[int, int]
    score: float | None
    status: str
    iou: float
    partner: int | None
    share: float


@dataclass(frozen=True)
class Picture:
    """An image of the report.

    Attributes:
        name: of its file.
        number, quality: see :class:`ReportImage`.
        width, height: of the drawing, in pixels.
        photo: a ``data:`` address.
        truth, predicted: from the largest to the smallest.
    """

    name: str
    number: int
    quality: float
    width: int
    height: int
    photo: str
    truth: list[Shape]
    predicted: list[Shape]

    @property
    def num_bytes(self) -> int:
        """About what it takes in the page."""
        shapes = [*self.truth, *self.predicted]
        return len(self.photo) + sum(len(s.path) + _BYTES_A_SHAPE for s in shapes)


def draw_picture(
    image: ReportImage, max_bytes: int = BYTES_AN_IMAGE, *, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Photo and outlines, as large as the budget allows but no larger than 512 pixels.

    Raises:
        DataError: naming the picture that cannot be read.
    """
    pixels = read_picture(image.record, image_format="RGB", max_pixels=max_pixels)
    longer = max(pixels.shape[:2])
    # no enlargement
    for side in sorted({min(side, longer) for side in _SIDES}, reverse=True):
        picture = _draw(image, pixels, side / longer)
        if picture.num_bytes <= max_bytes:
            break
    return picture


def _draw(image: ReportImage, pixels: np.ndarray, scale: float) -> Picture:
    height, width = (max(1, round(n * scale)) for n in pixels.shape[:2])
    photo = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    lossless = max(width, height) <= _LOSSLESS_SIDE
    photo.save(stream, "WEBP", quality=80, method=4, lossless=lossless)
    truth, predicted = image.truth.segments, image.predicted.segments
    matching = image.matching
    return Picture(
        name=Path(image.record["file_name"]).name,
        number=image.number,
        quality=image.quality,
        width=width,
        height=height,
        photo="data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode(),
        truth=_shapes(truth, matching.truth, predicted, (height, width)),
        predicted=_shapes(predicted, matching.predicted, truth, (height, width)),
    )


def _shapes(
    segments: Sequence[Segment],
    outcomes: Sequence[Outcome],
    others: Sequence[Segment],
    size: tuple[int, int],
) -> list[Shape]:
    shapes = []
    for segment, outcome in sorted(zip(segments, outcomes), key=lambda pair: -pair[0].area):
        mask = mask_util.decode(segment.rle).astype(bool)
        share = segment.area / mask.size
        mask = shrink_labels(mask, size)
        if not mask.any():  # thinner than a pixel of the drawing
            continue
        partner = None if outcome.partner is None else others[outcome.partner].label
        shapes.append(
            Shape(
                segment.label,
                outline(mask),
                inner_point(mask),
                segment.score,
                outcome.status,
                outcome.iou,
                partner,
                share,
            )
        )
    return shapes
