"""What a broken data set is, and ways to break one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .good_sets import FORMATS, Files

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Case:
    """A broken data set.

    Attributes:
        name: of the case.
        form: its format.
        break_it: changes the good data set.
        kind: of the one defect.
        file: that the defect names, below the data set's folder.
        record: that the defect names.
        severity: error or warning.
        left_out: images that ``skip`` leaves out; None if the set as a whole is unusable.
    """

    name: str
    form: str
    break_it: Callable[[Files], None]
    kind: str
    file: str
    record: str
    severity: str = "error"
    left_out: int | None = 1


def shorten(path: Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def resave(path: Path, change: Callable[[Image.Image], Image.Image], **options: Any) -> None:
    with Image.open(path) as image:
        changed = change(image.copy())
    changed.save(path, **options)


def turn(path: Path, *, stored: tuple[int, int]) -> None:
    """A picture of a stored (height, width) with the tag that turns it by a quarter."""
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    Image.new("RGB", stored[::-1]).save(path, exif=exif)


def see_through(image: Image.Image) -> Image.Image:
    image.putalpha(100)
    return image


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)


def deep_colours(path: Path) -> None:
    """An RGB PNG of 16 bit a channel in place of one of 8."""
    with Image.open(path) as image:
        values = np.asarray(image.convert("RGB")).astype(">u2")
    _write_png(path, values.shape[1], 16, 2, [row.tobytes() for row in values])


def few_bits(path: Path, labels: np.ndarray, bits: int) -> None:
    """Labels (H, W) as a greyscale PNG of 2 or 4 bit."""
    digits = np.unpackbits(labels[..., None], axis=-1)[..., -bits:]
    rows = np.packbits(digits.reshape(len(labels), -1), axis=-1)
    _write_png(path, labels.shape[1], bits, 0, [row.tobytes() for row in rows])


def _write_png(path: Path, width: int, depth: int, colour: int, rows: list[bytes]) -> None:
    """A PNG of a depth that Pillow cannot write; ``colour`` is PNG's own number of the kind."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", content), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def break_second_page(path: Path) -> None:
    """A TIFF with a second picture that says nothing of its size."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.save(path, format="TIFF", save_all=True, append_images=[picture])
    content = bytearray(path.read_bytes())

    def entries(directory: int) -> list[int]:
        (count,) = struct.unpack_from("<H", content, directory)
        return [directory + 2 + 12 * k for k in range(count + 1)]

    *_, end = entries(struct.unpack_from("<I", content, 4)[0])
    for place in entries(struct.unpack_from("<I", content, end)[0])[:-1]:
        if struct.unpack_from("<H", content, place)[0] in (256, 257):  # width, height
            struct.pack_into("<H", content, place, 0x9999)
    path.write_bytes(content)


def edit(change: Callable[[Files], Any]) -> Callable[[Files], None]:
    """A lambda's value is of no use."""

    def run(files: Files) -> None:
        change(files)

    return run


def paint(values: np.ndarray, where: tuple[slice, slice], value: int) -> np.ndarray:
    values[where] = value
    return values


CORNER = (slice(0, 2), slice(0, 3))


def rle(change: Callable[[dict[str, Any]], Any]) -> Callable[[Files], None]:
    return edit(lambda files: change(files.annotation(1)["segmentation"]))


def instances(
    name: str,
    kind: str,
    record: str,
    change: Callable[[Files], Any],
    severity: str = "error",
    file: str = "annotations.json",
    left_out: int | None = 1,
) -> Case:
    return Case(
        f"instances-{name}", FORMATS[0], edit(change), kind, file, record, severity,
        left_out if severity == "error" else 0,
    )  # fmt: skip


def panoptic(
    name: str,
    kind: str,
    change: Callable[[Files], Any],
    severity: str = "error",
    file: str = "annotations.json",
    record: str = "image 5",
    left_out: int | None = 1,
) -> Case:
    return Case(
        f"panoptic-{name}", FORMATS[1], edit(change), kind, file, record, severity,
        left_out if severity == "error" else 0,
    )  # fmt: skip


def semantic(
    name: str,
    kind: str,
    change: Callable[[Files], Any],
    severity: str = "error",
    file: str = "labels/a.png",
    record: str = "image a",
    left_out: int | None = 1,
) -> Case:
    return Case(
        f"semantic-{name}", FORMATS[2], edit(change), kind, file, record, severity,
        left_out if severity == "error" else 0,
    )  # fmt: skip
