"""Defects of a picture file: missing, broken, of another size, turned by a tag, of another kind."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import detection_utils as utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from knet.data.defects import Defect, data_error, describe, make_defect, raise_first

__all__ = [
    "BROKEN_FILE",
    "PictureHeader",
    "check_picture",
    "has_deep_channels",
    "read_header",
    "read_picture",
    "rotation_defect",
]

_ORIENTATION = 0x0112
# What Pillow's readers raise on files that end early or hold something else.
BROKEN_FILE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


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


def read_picture(record: Mapping[str, Any], *, image_format: str) -> np.ndarray:
    """Reads a record's picture as Detectron2 does.

    Args:
        record: with ``file_name`` and perhaps ``height``, ``width``, ``image_id``.
        image_format: as of :func:`detectron2.data.detection_utils.read_image`.

    Returns:
        (H, W, C) uint8, turned as its EXIF tag says.

    Raises:
        DataError: naming file, record and mend, if it is missing (also a FileNotFoundError),
            broken, has another size than the record says (also a SizeMismatchError), or more than
            8 bit a channel.
    """
    raise_first(_header_defects(read_header(record), record))
    try:
        return utils.read_image(record["file_name"], format=image_format)
    except BROKEN_FILE as error:
        raise data_error(_broken(record, error)) from error


def read_header(record: Mapping[str, Any]) -> PictureHeader:
    """Reads the header of a record's picture; DataError if it is missing or no picture."""
    try:
        with PathManager.open(record["file_name"], "rb") as stream, Image.open(stream) as image:
            return _header(image)
    except BROKEN_FILE as error:
        raise data_error(_broken(record, error)) from error


def check_picture(record: Mapping[str, Any]) -> tuple[PictureHeader | None, list[Defect]]:
    """Reads a record's picture to its last byte and names all that is wrong with it.

    Returns:
        The header (None if it cannot be read) and the defects: the errors are those of
        :func:`read_picture`.
    """
    header = None
    try:
        with PathManager.open(record["file_name"], "rb") as stream, Image.open(stream) as image:
            header = _header(image)
            found = _header_defects(header, record)
            image.load()
            found += _mode_defects(image, record)
    except BROKEN_FILE as error:
        return header, [_broken(record, error)]
    return header, found


def has_deep_channels(image: Image.Image) -> bool:
    """Whether an image that has not been decoded yet has more than 8 bit a channel.

    Pillow gives colours of 16 bit as mode RGB, without their lower byte: only the raw mode tells.
    """
    raw = " ".join(str(tile[3]) for tile in getattr(image, "tile", []))
    # RGB;16B, but not BGR;16, which is a picture of 5 and 6 bit a channel.
    return image.mode.startswith("I") or image.mode == "F" or bool(re.search(r";16[BLNS]", raw))


def _header(image: Image.Image) -> PictureHeader:
    deep = has_deep_channels(image)  # before the tags: they may follow the pixels
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken tags of any kind: Detectron2 leaves such pictures as they are
        orientation = 1
    if orientation not in range(1, 9):
        orientation = 1
    return PictureHeader(image.mode, deep, (image.height, image.width), int(orientation))


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
    path, name = record["file_name"], describe(record)
    if isinstance(error, FileNotFoundError):
        return make_defect("image-missing", path, name, f"no picture at {path}")
    kind = "image-truncated" if "truncated" in str(error).lower() else "image-unreadable"
    if isinstance(error, UnidentifiedImageError):
        problem = f"{path} cannot be read as a picture: it is of no known format"
    else:
        problem = f"{path} cannot be read as a picture: {error}"
    return make_defect(kind, path, name, problem)


def _text(size: Any) -> str:
    return f"{size[1]}x{size[0]}"
