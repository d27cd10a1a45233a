"""Pictures: the one way to open them, what is wrong with them, and the colours that a model takes.

Label PNGs are opened here, too.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from knet.data.defects import (
    DataError,
    Defect,
    Defects,
    data_error,
    describe,
    make_defect,
    raise_first,
)
from knet.data.tar_shards import find_member, read_member
from knet.files import whole_file

# default of INPUT.MAX_PIXELS: a photo of the largest cameras, a third of a GB once decoded
MAX_PIXELS = 100_000_000
# Pillow's readers raise anything on files that end early or hold something else
BROKEN_FILE = Exception

_ORIENTATION = 0x0112
_pillow = threading.RLock()
# what undoes each value of the tag but 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

# INPUT.FORMAT → (H, W, 3) uint8 RGB to what the model takes, (H, W, C) uint8, and C
FORMATS: Mapping[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "RGB": (lambda pixels: pixels, 3),
    "BGR": (lambda pixels: pixels[..., ::-1], 3),
    "L": (lambda pixels: np.array(Image.fromarray(pixels).convert("L"))[..., None], 1),
}


class TooManyPixelsError(ValueError):
    """A picture that is larger than INPUT.MAX_PIXELS."""


def in_format(pixels: np.ndarray, image_format: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB as a model takes it, (H, W, C) uint8.

    Raises:
        ValueError: `image_format`, INPUT.FORMAT, is no key of `FORMATS`.
    """
    if image_format not in FORMATS:
        raise ValueError(f"INPUT.FORMAT is {image_format!r}: it must be {' or '.join(FORMATS)}")
    return FORMATS[image_format][0](pixels)


@contextlib.contextmanager
def open_image(
    path: str | os.PathLike[str],
    *,
    max_pixels: int | None = MAX_PIXELS,
    data: bytes | None = None,
) -> Iterator[Image.Image]:
    """A picture or label file with its header read, and its pixels not yet.

    Args:
        path: of a regular file (a named pipe might wait for ever), or of a member of a tar shard.
        max_pixels: a larger one is refused; None where only the header is of interest.
        data: the file's content, where it does not lie in a file of its own.

    Raises:
        TooManyPixelsError: by its header it is larger.
        BROKEN_FILE: it is missing (FileNotFoundError), no regular file, or no picture.
    """
    with _stream(path, data) as stream, _opened(stream, max_pixels) as image:
        if image.format == "EPS":
            raise OSError("it is PostScript, a program to be run, not a picture")
        pixels = image.width * image.height
        if max_pixels is not None and pixels > max_pixels:
            raise TooManyPixelsError(_too_many(f"{pixels:,}", max_pixels))
        yield image


def _stream(path: str | os.PathLike[str], data: bytes | None) -> IO[bytes]:
    if data is None and (member := find_member(path)) is not None:
        data = read_member(*member)
    if data is not None:
        return io.BytesIO(data)
    local = PathManager.get_local_path(os.fspath(path))
    mode = os.stat(local).st_mode
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise OSError(f"it is {kind}, not a file")
    return open(local, "rb")


def _opened(stream: object, max_pixels: int | None) -> Image.Image:
    try:
        with pillow_limit(max_pixels), warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(stream)  # type: ignore[arg-type]
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        count = f"{int(found[1]):,}" if found else "too many"
        raise TooManyPixelsError(_too_many(count, max_pixels)) from error


@contextlib.contextmanager
def pillow_limit(max_pixels: int | None) -> Iterator[None]:
    """Within, Pillow opens pictures of `max_pixels`, None: of any size; its limit is a global."""
    with _pillow:
        before = Image.MAX_IMAGE_PIXELS  # it warns above, and refuses twice as many
        if max_pixels is None:
            Image.MAX_IMAGE_PIXELS = None
        elif before is not None:
            # not put back: pictures of this size are decoded after they were opened
            Image.MAX_IMAGE_PIXELS = before = max(before, max_pixels)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _renew_lock() -> None:
    global _pillow
    _pillow = threading.RLock()  # a thread that the child does not have may have held it


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_lock)


def _too_many(count: str, limit: int | None) -> str:
    return f"it has {count} pixels, more than INPUT.MAX_PIXELS ({limit or MAX_PIXELS:,}) allows"


def save_image(path: str | os.PathLike[str], pixels: np.ndarray, **options: Any) -> None:
    """Write pixels, (H, W) or (H, W, 3) of a type that Pillow has, whole or not at all.

    The suffix names the format, if no option of Pillow's `save` does; OSError if that fails.
    """
    with whole_file(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, **options)


def png_bytes(pixels: np.ndarray) -> bytes:
    """What `save_image` would write to a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def unreadable(error: BaseException, path: str, name: str, *, label: str = "") -> Defect:
    """The defect of a file that `open_image` or Pillow's decoder refused with an error.

    Args:
        path, name: of the file and its record.
        label: what the file holds if it is no picture: "panoptic PNG".
    """
    family = "png" if label else "image"
    if isinstance(error, FileNotFoundError):
        return make_defect(f"{family}-missing", path, name, f"no {label or 'picture'} at {path}")
    reason = str(error) or type(error).__name__
    kind = f"{family}-unreadable"
    if isinstance(error, TooManyPixelsError):
        kind = "image-too-large"
    elif isinstance(error, UnidentifiedImageError):
        reason = "it is of no known format"
    elif not label and "truncated" in reason.lower():
        kind = "image-truncated"
    what = "an image" if label else "a picture"
    return make_defect(kind, path, name, f"{path} cannot be read as {what}: {reason}")


def _orientation(image: Image.Image) -> int:
    """Of the EXIF tag, 1 to 8; 1 is upright, and what there is without a tag that can be read."""
    # a PNG may have the tag behind its pixels, which Pillow decodes on the way there
    many = image.width * image.height > MAX_PIXELS
    if many and image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except BROKEN_FILE:  # broken tags of any kind: Detectron2 leaves such pictures as they are
        return 1
    return value if value in _TURNS else 1


def upright_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of an image of 8 bit a channel, turned as its EXIF tag says."""
    turn = _TURNS.get(_orientation(image))
    return np.asarray((image if turn is None else image.transpose(turn)).convert("RGB"))


def has_deep_channels(image: Image.Image) -> bool:
    """Whether an image that has not been decoded yet has more than 8 bit a channel.

    Pillow gives colours of 16 bit as mode RGB, without their lower byte: only the raw mode tells.
    """
    raw = " ".join(str(tile[3]) for tile in getattr(image, "tile", []))
    # RGB;16B, but not BGR;16, which is a picture of 5 and 6 bit a channel.
    return image.mode.startswith("I") or image.mode == "F" or bool(re.search(r";16[BLNS]", raw))


@dataclass(frozen=True)
class PictureHeader:
    """What a picture's header says."""

    mode: str  # Pillow's
    deep: bool  # whether it has more than 8 bit a channel
    stored: tuple[int, int]  # (H, W) in pixels, as stored
    orientation: int  # of the EXIF tag, 1 to 8; 1 is upright, 5 to 8 swap the sides

    @classmethod
    def of(cls, image: Image.Image) -> PictureHeader:
        """Of an image that has not been decoded yet."""
        deep = has_deep_channels(image)  # before the tags: they may follow the pixels
        return cls(image.mode, deep, (image.height, image.width), _orientation(image))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) once turned as the tag says, which Detectron2 does on reading."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


@contextlib.contextmanager
def _open_picture(record: Mapping[str, Any], max_pixels: int | None) -> Iterator[Image.Image]:
    """A record's picture; DataError for all that fails until the end of the block."""
    path = record["file_name"]
    try:
        with open_image(path, max_pixels=max_pixels, data=record.get("data")) as image:
            yield image
    except DataError:
        raise
    except BROKEN_FILE as error:
        raise data_error(unreadable(error, path, describe(record))) from error


def read_picture(
    record: Mapping[str, Any], *, image_format: str, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Reads a record's picture for a model.

    Args:
        record: with ``file_name`` and perhaps ``height``, ``width``, ``image_id``; ``data``, the
            bytes of the file, where it does not lie in a file of its own.
        image_format: INPUT.FORMAT, see :func:`in_format`.
        max_pixels: INPUT.MAX_PIXELS.

    Returns:
        (H, W, C) uint8, turned as its EXIF tag says.

    Raises:
        DataError: naming file, record and mend, if it is missing (also a FileNotFoundError),
            no regular file, broken, too large, has another size than the record says (also a
            SizeMismatchError), or more than 8 bit a channel.
    """
    with _open_picture(record, max_pixels) as image:
        raise_first(_header_defects(PictureHeader.of(image), record))
        pixels = upright_rgb(image)
    return in_format(pixels, image_format)


def read_header(record: Mapping[str, Any]) -> PictureHeader:
    """The header of a record's picture, of any size; DataError: it is missing or no picture."""
    with _open_picture(record, None) as image:
        return PictureHeader.of(image)


def check_picture(
    record: Mapping[str, Any], *, max_pixels: int = MAX_PIXELS
) -> tuple[PictureHeader | None, list[Defect]]:
    """Reads a record's picture to its last byte: the header, None if there is none, and defects.

    The errors among them are those of :func:`read_picture`.
    """
    header = None
    try:
        with _open_picture(record, max_pixels) as image:
            header = PictureHeader.of(image)
            found = _header_defects(header, record)
            image.load()
            problem = _conversion_problem(image)
    except DataError as error:
        return header, error.defects
    if problem:
        found.add("image-mode", problem)
    return header, found


def _header_defects(header: PictureHeader, record: Mapping[str, Any]) -> Defects:
    found = Defects(record["file_name"], describe(record))
    if header.deep:
        problem = f"has more than 8 bit a channel (mode {header.mode}): a part would be cut"
        found.add("image-depth", problem)
    size = (record.get("height"), record.get("width"))
    expected = None if None in size else size
    if expected not in (None, header.size, header.stored):
        is_now = f"the picture is {_text(header.size)} pixels (width x height)"
        found.add("size-mismatch", f"{is_now}, but its record says {_text(expected)}")
    elif header.orientation != 1:
        found.append(rotation_defect(header, record, displaced=expected not in (None, header.size)))
    return found


def rotation_defect(header: PictureHeader, record: Mapping[str, Any], *, displaced: bool) -> Defect:
    """The defect of a picture with an EXIF tag; ``displaced``: its annotations cannot fit."""
    turned = f"{_text(header.stored)} to {_text(header.size)} pixels (width x height)"
    problem = f"its EXIF tag (orientation {header.orientation}) turns it on reading, {turned}"
    problem += ", but it was annotated as stored" if displaced else "; was it annotated as turned?"
    mend = "remove the tag: the annotations fit the pixels as stored"
    own = {"severity": "error", "mend": mend} if displaced else {}
    return make_defect("exif-rotation", record["file_name"], describe(record), problem, **own)


def _conversion_problem(image: Image.Image) -> str:
    """What the conversion of a decoded image to RGB loses, or ""."""
    try:
        frames = getattr(image, "n_frames", 1)
    except BROKEN_FILE as error:
        what = f"{type(error).__name__}: {error}"
        return f"holds further pictures, which are broken ({what}); the first is read"
    if frames > 1:
        return f"holds {frames} pictures, of which the first is read"
    if image.mode == "CMYK":
        return "is in mode CMYK, whose colours depend on the program that converts them"
    palette = f"is a palette image (mode {image.mode})" if image.mode in ("P", "PA") else ""
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        # Fully opaque pixels lose nothing.
        if image.getchannel("A" if image.mode[-1] == "A" else "a").getextrema()[0] < 255:
            return f"has transparent pixels (mode {image.mode}), which are read as opaque"
    elif "transparency" in image.info:
        start = palette or f"is in mode {image.mode}"
        return f"{start} with a transparent colour, which is read as opaque"
    return palette


def _text(size: Any) -> str:
    return f"{size[1]}x{size[0]}"
