"""Folders of pictures and of label PNGs: listing, pairing by name, writing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

__all__ = [
    "image_size",
    "label_png_paths",
    "open_label_png",
    "pair_images_with_labels",
    "save_labels",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png",)

_EXIF_ORIENTATION = 0x0112


def label_png_paths(root: Path) -> dict[str, Path]:
    """The PNGs below a folder, by relative path without suffix, sorted.

    Raises:
        ValueError: if two of them have one name (``a.png`` and ``a.PNG``).
    """
    return _by_stem(root, LABEL_SUFFIXES)


def open_label_png(path: str | os.PathLike[str]) -> tuple[str, np.ndarray]:
    """Pillow's mode and the values (palettes as indices) of a label PNG of any kind.

    Raises:
        FileNotFoundError, ValueError: naming the file, if it is missing or no image.
    """
    try:
        with PathManager.open(os.fspath(path), "rb") as stream, Image.open(stream) as image:
            return image.mode, np.array(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no semantic labels at {path}") from error
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def pair_images_with_labels(
    image_root: Path, sem_seg_root: Path, where: str
) -> list[tuple[str, Path, Path]]:
    """Pairs pictures and label PNGs by their relative paths without suffix.

    Args:
        image_root: folder of the pictures, at any depth.
        sem_seg_root: folder of the label PNGs, arranged alike.
        where: what the files belong to, for messages.

    Returns:
        (relative path without suffix, picture, label PNG) of each, sorted.

    Raises:
        ValueError: if one folder holds the other, there is no picture, two pictures have one
            name, or a picture or a label PNG has no counterpart.
    """
    images_at, labels_at = image_root.resolve(), sem_seg_root.resolve()
    if images_at == labels_at or images_at in labels_at.parents or labels_at in images_at.parents:
        raise ValueError(
            f"{where}: pictures ({image_root}) and labels ({sem_seg_root}) must be in two "
            f"folders, neither of them within the other"
        )
    images = _by_stem(image_root, IMAGE_SUFFIXES)
    if not images:
        raise ValueError(
            f"{where}: no picture below {image_root}; known are {', '.join(IMAGE_SUFFIXES)}"
        )
    labels = label_png_paths(sem_seg_root)
    problems = []
    bare = [str(images[stem]) for stem in images if stem not in labels]
    if bare:
        problems.append(f"{len(bare)} without a label PNG below {sem_seg_root}: {_first(bare)}")
    lone = [str(labels[stem]) for stem in labels if stem not in images]
    if lone:
        problems.append(
            f"{len(lone)} label PNGs without a picture below {image_root}: {_first(lone)}"
        )
    if problems:
        raise ValueError(
            f"{where}: of {len(images)} pictures and {len(labels)} label PNGs, "
            f"{'; '.join(problems)}. A label PNG has the relative path of its picture, but for "
            f"the suffix (city/a.jpg and city/a.png)"
        )
    return [(stem, image, labels[stem]) for stem, image in images.items()]


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels from a picture's header, turned as its EXIF tag says.

    Raises:
        ValueError: naming the file, if it is no picture.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    # Detectron2 turns pictures on reading; 5 to 8 are the turns that swap the sides.
    return (width, height) if turned else (height, width)


def save_labels(path: Path, labels: np.ndarray) -> None:
    """Writes labels (H, W) uint8 as a greyscale PNG, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    Image.fromarray(labels).save(partial, format="PNG")
    partial.replace(path)


def _by_stem(root: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files below a folder by relative path without suffix, sorted by it."""
    found: dict[str, Path] = {}
    for path in _walk(root):
        if path.suffix.lower() not in suffixes:
            continue
        stem = path.relative_to(root).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(
                f"{found[stem]} and {path} differ in their suffix only, so labels cannot be told "
                f"apart by name: remove or rename one"
            )
        found[stem] = path
    return dict(sorted(found.items()))


def _walk(root: Path) -> Iterator[Path]:
    # Linked folders count: data are often linked into place. Hidden files do not (macOS writes
    # `._a.jpg` beside `a.jpg`).
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield Path(folder, name)


def _first(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
