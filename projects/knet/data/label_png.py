"""Semantic label PNGs, one by one and in folders: reading, what is wrong, pairing, writing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from knet.data.defects import (
    DataError,
    Defect,
    data_error,
    failure,
    make_defect,
    raise_first,
)
from knet.data.images import BROKEN_FILE, MAX_PIXELS, open_image, save_image, unreadable
from knet.modeling.targets import IGNORE_LABEL

# Pillow spreads greys of few bits over 0 … 255: its factor by raw mode.
_STRETCH = {"L;2": 85, "L;4": 17}
_MODES = {
    "1": "1 bit",
    "F": "floating point",
    "L;2": "2 bit greyscale",
    "L;4": "4 bit greyscale",
    "P": "palette",
}


def read_label_png(
    path: str,
    size: tuple[int, int],
    num_classes: int | None,
    ignore_label: int,
    record: str = "",
) -> np.ndarray:
    """Reads a semantic label PNG: (H, W) uint8, with 255 for ``ignore_label``.

    Args:
        path: of an 8 bit greyscale picture, the values being labels.
        size: (H, W) that it must have.
        num_classes: labels must be below, or equal to ``ignore_label``; None: unchecked.
        ignore_label: value of pixels without a label.
        record: that it belongs to, for messages.

    Raises:
        DataError: as of :func:`open_png`; or it is no label map, or holds other labels.
    """
    mode, labels = open_label_png(path, record, size)
    raise_first(label_png_defects(mode, labels, num_classes, ignore_label, path, record))
    check_label_size(labels, size, path, record)
    if ignore_label != IGNORE_LABEL:
        labels[labels == ignore_label] = IGNORE_LABEL
    return labels


def open_label_png(
    path: str | os.PathLike[str],
    record: str = "",
    size: tuple[int, int] | None = None,
    picture: str = "",
    max_pixels: int = MAX_PIXELS,
) -> tuple[str, np.ndarray]:
    """Pillow's mode and the values (palettes as indices) of a label PNG of any kind.

    Of greyscale of 2 and 4 bit the mode is ``L;2`` and ``L;4``, and the values are those stored.

    Args, raises: as of :func:`open_png`.
    """
    kind = "label-png-mode", "semantic labels"
    with open_png(path, record, size, picture, kind=kind, max_pixels=max_pixels) as image:
        raw = image.tile[0][3] if image.tile else None
        if raw in _STRETCH:
            return raw, np.array(image) // np.uint8(_STRETCH[raw])
        return image.mode, np.array(image)


@contextlib.contextmanager
def open_png(
    path: str | os.PathLike[str],
    record: str,
    size: tuple[int, int] | None,
    picture: str,
    *,
    kind: tuple[str, str],
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Image.Image]:
    """A PNG of labels with its header read, which may be decoded within the block.

    Args:
        path: of the PNG.
        record: that it belongs to, for messages.
        size: (H, W) of its picture; a PNG of another number of pixels is not decoded: the header of
            a small file may claim a size that fills the memory. Sides that are swapped pass; they
            are found later, with what may have turned them.
        picture: its name, for messages.
        kind: of the defect of another file format, and what the file holds.
        max_pixels: a larger PNG is refused, if no size is given.

    Raises:
        DataError: naming the file and the record, if it is missing (also a FileNotFoundError),
            cannot be read, is no PNG, is too large, or has more or fewer pixels than its picture.
    """
    path = os.fspath(path)
    try:
        # a label may be as large as its picture
        with open_image(path, max_pixels=max_pixels if size is None else None) as image:
            if size is not None and image.width * image.height != size[0] * size[1]:
                raise _size_error((image.height, image.width), size, path, record, picture)
            if image.format != "PNG":
                problem = f"is a {image.format} file, not a PNG"
                problem += ": its values are not exact" * (image.format == "JPEG")
                mend = "write it again, from its source, as PNG"
                raise failure(kind[0], path, record, problem, mend=mend)
            yield image
    except DataError:
        raise
    except BROKEN_FILE as error:
        raise data_error(unreadable(error, path, record, label=kind[1])) from error


def check_label_size(
    labels: np.ndarray, size: tuple[int, int], path: str, record: str, picture: str = ""
) -> None:
    """Raises DataError if labels (H, W, …) have another size than their picture (H, W)."""
    if labels.shape[:2] != size:
        raise _size_error(labels.shape, size, path, record, picture)


def _size_error(
    found: tuple[int, ...], size: tuple[int, int], path: str, record: str, picture: str
) -> DataError:
    problem = (
        f"{path} is {found[1]}x{found[0]} (width x height), but its picture "
        f"{picture + ' ' if picture else ''}is {size[1]}x{size[0]}"
    )
    return failure("png-size", path, record, problem)


def label_png_defects(
    mode: str,
    labels: np.ndarray,
    num_classes: int | None,
    ignore_label: int,
    path: str,
    record: str,
) -> list[Defect]:
    """What is wrong with kind or values of what :func:`open_label_png` gave."""
    if mode == "L":
        if num_classes is None:
            return []
        wrong = np.unique(labels[(labels >= num_classes) & (labels != ignore_label)])
        known = range(num_classes)
        return class_defects(wrong, known, path, "label", record, kind="label-range")
    if labels.ndim == 3:
        problem = f"a label map has one channel, this one has {labels.shape[2]} (mode {mode})"
        mend = "write the class index of each pixel into an 8 bit greyscale PNG"
        return [make_defect("label-png-mode", path, record, problem, mend=mend)]
    problem = (
        f"a label map is an 8 bit greyscale PNG, this one is a "
        f"{_MODES.get(mode, '16 or 32 bit greyscale')} image (mode {mode}; largest value "
        f"{float(labels.max()):g})"
    )
    return [make_defect("label-png-mode", path, record, problem)]


def class_defects(
    values: np.ndarray,
    known: Sequence[int] | None,
    path: str,
    what: str,
    record: str = "",
    *,
    kind: str = "unknown-category",
) -> list[Defect]:
    """A defect for each value that is no known id, in their order.

    Args:
        values: ids, which the message calls ``what``.
        known: sorted ids; None allows any that is not negative.
    """
    wrong = values < 0 if known is None else ~np.isin(values, known)
    allowed = "must not be negative"
    if known is not None:
        gaps = known[-1] - known[0] >= len(known) if known else True
        ids = ", ".join(map(str, known)) if gaps else f"{known[0]} to {known[-1]}"
        allowed = f"there are {len(known)}, {ids}"
    return [
        make_defect(kind, path, record, f"{what} {value}, but {allowed}")
        for value in dict.fromkeys(values[wrong].tolist())
    ]


def save_labels(path: Path, labels: np.ndarray) -> None:
    """Writes labels (H, W) uint8 as a greyscale PNG, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(path, labels, format="PNG")
