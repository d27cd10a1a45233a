"""Folders of pictures and of label PNGs: listing, pairing by name, writing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from knet.data.annotations.image_files import (
    BROKEN_FILE,
    MAX_PIXELS,
    SUFFIXES,
    is_read,
    left_out,
    open_image,
    save_image,
    unreadable,
)
from knet.data.defects import DataError, Defect, data_error, make_defect, raise_first
from knet.files import UNFINISHED

__all__ = [
    "Pairing",
    "check_pixels",
    "foreign_format",
    "label_png_paths",
    "open_label_png",
    "pair_images_with_labels",
    "save_labels",
    "size_defect",
]

# Pillow spreads greys of few bits over 0 … 255: its factor by raw mode.
_STRETCH = {"L;2": 85, "L;4": 17}


def label_png_paths(root: Path) -> dict[str, Path]:
    """The PNGs below a folder, by relative path without suffix, sorted.

    Raises:
        DataError: if two of them have one name (``a.png`` and ``a.PNG``).
    """
    return _by_stem(root, [path for path in _walk(root) if path.suffix.lower() == ".png"])


def open_label_png(
    path: str | os.PathLike[str],
    record: str = "",
    size: tuple[int, int] | None = None,
    picture: str = "",
    max_pixels: int = MAX_PIXELS,
) -> tuple[str, np.ndarray]:
    """Pillow's mode and the values (palettes as indices) of a label PNG of any kind.

    Of greyscale of 2 and 4 bit the mode is ``L;2`` and ``L;4``, and the values are those stored.

    Args:
        path: of the PNG.
        record: that it belongs to, for messages.
        size: (H, W) of its picture; a PNG of another number of pixels is not decoded.
        picture: its name, for messages.
        max_pixels: a larger PNG is refused, if no size is given.

    Raises:
        DataError: naming the file and the record, if it is missing (also a FileNotFoundError),
            cannot be read, is no PNG, is too large, or has more or fewer pixels than its picture.
    """
    try:
        # a label may be as large as its picture
        limit = max_pixels if size is None else None
        with open_image(path, max_pixels=limit) as image:
            check_pixels(image, size, os.fspath(path), record, picture)
            raw = image.tile[0][3] if image.format == "PNG" and image.tile else None
            if raw in _STRETCH:
                return raw, np.array(image) // np.uint8(_STRETCH[raw])
            if image.format == "PNG":
                return image.mode, np.array(image)
            form = image.format
    except DataError:
        raise
    except BROKEN_FILE as error:
        defect = unreadable(error, os.fspath(path), record, label="semantic labels")
        raise data_error(defect) from error
    raise DataError(foreign_format("label-png-mode", form, os.fspath(path), record))


def check_pixels(
    image: Image.Image, size: tuple[int, int] | None, path: str, record: str, picture: str = ""
) -> None:
    """Raises DataError if labels whose header alone has been read have not their picture's pixels.

    Before decoding: the header of a small file may claim a size that fills the memory. Sides that
    are swapped pass; they are found later, with what may have turned them.
    """
    if size is not None and image.width * image.height != size[0] * size[1]:
        raise DataError(size_defect((image.height, image.width), size, path, record, picture))


def size_defect(
    found: tuple[int, ...], size: tuple[int, int], path: str, record: str, picture: str = ""
) -> Defect:
    """The defect of labels of a size (H, W) that is not ``size``, their picture's."""
    problem = (
        f"{path} is {found[1]}x{found[0]} (width x height), but its picture "
        f"{picture + ' ' if picture else ''}is {size[1]}x{size[0]}"
    )
    return make_defect("png-size", path, record, problem)


def foreign_format(kind: str, form: str | None, path: str, record: str) -> Defect:
    """The defect of labels in another file format than PNG."""
    problem = f"is a {form} file, not a PNG" + (": its values are not exact" * (form == "JPEG"))
    return make_defect(kind, path, record, problem, mend="write it again, from its source, as PNG")


@dataclass(frozen=True)
class Pairing:
    """Pictures and label PNGs of one relative path without suffix.

    Attributes:
        image_root, sem_seg_root: the folders.
        pairs: (relative path without suffix, picture, label PNG) of each, sorted.
        bare: pictures without a label PNG, by relative path.
        lone: label PNGs without a picture.
        left_out: a message for each kind of picture that is not read.
    """

    image_root: Path
    sem_seg_root: Path
    pairs: list[tuple[str, Path, Path]]
    bare: dict[str, Path]
    lone: dict[str, Path]
    left_out: list[str]

    def defects(self) -> list[Defect]:
        """One for each file without a counterpart."""
        found = []
        for stem, path in self.bare.items():
            problem = f"no label PNG of this name below {self.sem_seg_root}"
            found.append(make_defect("png-missing", str(path), f"image {stem}", problem))
        for stem, path in self.lone.items():
            problem = f"no picture of this name below {self.image_root}"
            problem = "; ".join([problem, *self.left_out])
            found.append(make_defect("orphan-annotation", str(path), f"image {stem}", problem))
        return found

    def error(self, where: str) -> DataError | None:
        """One error for all files without a counterpart, None if there is no such file."""
        problems = []
        if self.bare:
            problems.append(
                f"{len(self.bare)} without a label PNG below {self.sem_seg_root}: "
                f"{_first(self.bare)}"
            )
        if self.lone:
            problems.append(
                f"{len(self.lone)} label PNGs without a picture below {self.image_root}: "
                f"{_first(self.lone)}"
            )
        if not problems:
            return None
        first = self.defects()[0]
        counts = (len(self.pairs) + len(self.bare), len(self.pairs) + len(self.lone))
        return DataError(
            make_defect(
                first.kind,
                first.file,
                "",
                f"{where}: of {counts[0]} pictures and {counts[1]} label PNGs, "
                f"{'; '.join(problems + self.left_out)}",
                mend="a label PNG has the relative path of its picture, but for the suffix "
                "(city/a.jpg and city/a.png)",
            )
        )


def pair_images_with_labels(image_root: Path, sem_seg_root: Path, where: str) -> Pairing:
    """Pairs pictures and label PNGs by their relative paths without suffix.

    Args:
        image_root: folder of the pictures, at any depth.
        sem_seg_root: folder of the label PNGs, arranged alike.
        where: what the files belong to, for messages.

    Raises:
        ValueError: if one folder holds the other; a DataError if there is no picture, or two
            files of one folder have one name.
    """
    images_at, labels_at = image_root.resolve(), sem_seg_root.resolve()
    if images_at == labels_at or images_at in labels_at.parents or labels_at in images_at.parents:
        raise ValueError(
            f"{where}: pictures ({image_root}) and labels ({sem_seg_root}) must be in two "
            f"folders, neither of them within the other"
        )
    files = list(_walk(image_root))
    images = _by_stem(image_root, [path for path in files if is_read(path)])
    unread = left_out(image_root, files)
    if not images:
        problem = "; ".join([f"{where}: no picture below {image_root}", *unread])
        suffixes = ", ".join(filter(is_read, SUFFIXES))
        mend = f"put pictures there ({suffixes}), or correct the folder"
        raise DataError(make_defect("no-images", str(image_root), "", problem, mend=mend))
    labels = label_png_paths(sem_seg_root)
    return Pairing(
        image_root=image_root,
        sem_seg_root=sem_seg_root,
        pairs=[(stem, image, labels[stem]) for stem, image in images.items() if stem in labels],
        bare={stem: path for stem, path in images.items() if stem not in labels},
        lone={stem: path for stem, path in labels.items() if stem not in images},
        left_out=unread,
    )


def save_labels(path: Path, labels: np.ndarray) -> None:
    """Writes labels (H, W) uint8 as a greyscale PNG, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(path, labels, format="PNG")


def _by_stem(root: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Files below a folder by relative path without suffix, sorted by it."""
    found: dict[str, Path] = {}
    twice: list[Defect] = []
    for path in files:
        stem = path.relative_to(root).with_suffix("").as_posix()
        if stem in found:
            first, second = sorted((found[stem], path))
            problem = f"differs from {first} in its suffix only: both would have the same labels"
            twice.append(make_defect("shared-name", str(second), f"image {stem}", problem))
        found[stem] = path
    raise_first(sorted(twice, key=lambda defect: defect.file))
    return dict(sorted(found.items()))


def _walk(root: Path) -> Iterator[Path]:
    # Linked folders count: data are often linked into place. Hidden files do not (macOS writes
    # `._a.jpg` beside `a.jpg`), nor what a killed process left.
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and UNFINISHED not in name:
                yield Path(folder, name)


def _first(files: dict[str, Path]) -> str:
    return ", ".join(map(str, list(files.values())[:3])) + (", …" if len(files) > 3 else "")
