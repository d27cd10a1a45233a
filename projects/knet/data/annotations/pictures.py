"""Defects of a picture file: missing, broken, of another size, turned by a tag, of another kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from knet.data.annotations.image_files import (
    BROKEN_FILE,
    MAX_PIXELS,
    has_deep_channels,
    in_format,
    open_image,
    orientation,
    unreadable,
    upright_rgb,
)
from knet.data.defects import DataError, Defect, data_error, describe, make_defect, raise_first

__all__ = ["PictureHeader", "check_picture", "read_header", "read_picture", "rotation_defect"]


@dataclass(frozen=True)
class PictureHeader:
    """What a picture's header says.

    Attributes:
        mode: Pillow's.
        deep: whether it has more than 8 bit a channel.
        stored: (H, W) in pixels, as stored.
        orientation: of the EXIF tag, 1 to 8; 1 is upright, 5 to 8 swap the sides.
    """

    mode: str
    deep: bool
    stored: tuple[int, int]
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) once turned as the tag says, which Detectron2 does on reading."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


def read_picture(
    record: Mapping[str, Any], *, image_format: str, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Reads a record's picture for a model.

    Args:
        record: with ``file_name`` and perhaps ``height``, ``width``, ``image_id``.
        image_format: INPUT.FORMAT, see :func:`knet.data.annotations.image_files.in_format`.
        max_pixels: INPUT.MAX_PIXELS.

    Returns:
        (H, W, C) uint8, turned as its EXIF tag says.

    Raises:
        DataError: naming file, record and mend, if it is missing (also a FileNotFoundError),
            no regular file, broken, too large, has another size than the record says (also a
            SizeMismatchError), or more than 8 bit a channel.
    """
    try:
        with open_image(record["file_name"], max_pixels=max_pixels) as image:
            raise_first(_header_defects(_header(image), record))
            pixels = upright_rgb(image)
    except DataError:
        raise
    except BROKEN_FILE as error:
        raise data_error(_broken(record, error)) from error
    return in_format(pixels, image_format)


def read_header(record: Mapping[str, Any]) -> PictureHeader:
    """Reads the header of a record's picture, of any size.

    Raises:
        DataError: it is missing or no picture.
    """
    try:
        with open_image(record["file_name"], max_pixels=None) as image:
            return _header(image)
    except BROKEN_FILE as error:
        raise data_error(_broken(record, error)) from error


def check_picture(
    record: Mapping[str, Any], *, max_pixels: int = MAX_PIXELS
) -> tuple[PictureHeader | None, list[Defect]]:
    """Reads a record's picture to its last byte and names all that is wrong with it.

    Args: as of :func:`read_picture`.

    Returns:
        The header (None if it cannot be read) and the defects: the errors are those of
        :func:`read_picture`.
    """
    header = None
    try:
        with open_image(record["file_name"], max_pixels=max_pixels) as image:
            header = _header(image)
            found = _header_defects(header, record)
            image.load()
            found += _mode_defects(image, record)
    except BROKEN_FILE as error:
        return header, [_broken(record, error)]
    return header, found


def _header(image: Image.Image) -> PictureHeader:
    deep = has_deep_channels(image)  # before the tags: they may follow the pixels
    return PictureHeader(image.mode, deep, (image.height, image.width), orientation(image))


def _header_defects(header: PictureHeader, record: Mapping[str, Any]) -> list[Defect]:
    path, name = record["file_name"], describe(record)
    found = []
    if header.deep:
        problem = f"has more than 8 bit a channel (mode {header.mode}): a part would be cut"
        found.append(make_defect("image-depth", path, name, problem))
    size = (record.get("height"), record.get("width"))
    expected = None if None in size else size
    if expected not in (None, header.size) and expected != header.stored:
        problem = (
            f"the picture is {_text(header.size)} pixels (width x height), but its record says "
            f"{_text(expected)}"
        )
        found.append(make_defect("size-mismatch", path, name, problem))
    elif header.orientation != 1:
        found.append(rotation_defect(header, record, displaced=expected not in (None, header.size)))
    return found


def rotation_defect(header: PictureHeader, record: Mapping[str, Any], *, displaced: bool) -> Defect:
    """The defect of a picture with an EXIF tag; ``displaced``: its annotations cannot fit."""
    turned = f"{_text(header.stored)} to {_text(header.size)} pixels (width x height)"
    problem = f"its EXIF tag (orientation {header.orientation}) turns it on reading, {turned}"
    problem += ", but it was annotated as stored" if displaced else "; was it annotated as turned?"
    return make_defect(
        "exif-rotation",
        record["file_name"],
        describe(record),
        problem,
        severity="error" if displaced else "warning",
        mend="remove the tag: the annotations fit the pixels as stored" if displaced else None,
    )


def _mode_defects(image: Image.Image, record: Mapping[str, Any]) -> list[Defect]:
    """What a conversion to RGB loses."""
    problem = ""
    if image.mode in ("P", "PA"):
        problem = f"is a palette image (mode {image.mode})"
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        # Fully opaque pixels lose nothing.
        if image.getchannel("A" if image.mode[-1] == "A" else "a").getextrema()[0] < 255:
            problem = f"has transparent pixels (mode {image.mode}), which are read as opaque"
    elif "transparency" in image.info:
        problem = (problem or f"is in mode {image.mode}") + (
            " with a transparent colour, which is read as opaque"
        )
    if image.mode == "CMYK":
        problem = "is in mode CMYK, whose colours depend on the program that converts them"
    problem = _frames_problem(image) or problem
    if not problem:
        return []
    return [make_defect("image-mode", record["file_name"], describe(record), problem)]


def _frames_problem(image: Image.Image) -> str:
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception as error:  # Pillow's readers raise anything where a later picture is broken
        what = f"{type(error).__name__}: {error}"
        return f"holds further pictures, which are broken ({what}); the first is read"
    return f"holds {frames} pictures, of which the first is read" if frames > 1 else ""


def _broken(record: Mapping[str, Any], error: BaseException) -> Defect:
    return unreadable(error, record["file_name"], describe(record))


def _text(size: Any) -> str:
    return f"{size[1]}x{size[0]}"
