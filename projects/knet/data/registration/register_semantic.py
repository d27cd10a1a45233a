"""Registers semantic data: a folder of pictures and a folder of label PNGs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from knet.data.annotations.label_files import Pairing, pair_images_with_labels
from knet.data.annotations.pictures import read_header
from knet.data.defects import DataError, make_defect
from knet.data.on_error import Scan, register_scan, set_on_error
from knet.data.registration.catalog import PathLike, is_registered, optional_file, optional_folder
from knet.data.registration.categories import category_colors, color_problem
from knet.files import read_text

__all__ = ["read_class_names", "register_sem_seg"]

logger = logging.getLogger(__name__)

Color = Sequence[int]


def register_sem_seg(
    name: str,
    *,
    image_root: PathLike,
    sem_seg_root: PathLike,
    classes: Sequence[str] | PathLike,
    colors: Sequence[Color] | None = None,
    ignore_label: int = 255,
    max_images: int | None = None,
    on_error: str = "raise",
) -> None:
    """Registers a data set of pictures and semantic label PNGs.

    Files are listed here and paired by their relative paths without suffix; sizes are read from
    the pictures' headers when the records are first asked for.

    Args:
        name: for ``cfg.DATASETS``.
        image_root: folder of the pictures (jpg, jpeg, png, webp, bmp, tif), at any depth.
        sem_seg_root: folder of 8 bit greyscale PNGs whose values are class indices.
        classes: the class names in the order of their indices, or a text file with one a line,
            or a JSON file with a list of names or of dicts with ``name`` and perhaps ``color``.
        colors: RGB in 0 … 255 of each class, for drawings; by default those of the JSON file,
            else generated.
        ignore_label: value of pixels without a label, 0 to 255.
        max_images: keep only the first so many, in the order of their paths.
        on_error: what happens to pictures without labels, labels without a picture and pictures
            that cannot be read: ``raise`` (a DataError that names the file and the mend) or
            ``skip`` (they are left out, with one warning that counts them).

    Raises:
        FileNotFoundError: naming the folder or file that is missing.
        ValueError: if pictures and labels do not pair (DataError), the classes, the ignored
            label, the colours or ``on_error`` are not usable, or the name is taken.
    """
    where = f"data set {name!r}"
    images = optional_folder(image_root, "the pictures", name)
    labels = optional_folder(sem_seg_root, "the label PNGs", name)
    assert images is not None and labels is not None
    names, own_colors = read_class_names(classes, name)
    file = f" ({os.fspath(classes)})" if isinstance(classes, (str, Path)) else ""
    _check_classes(names, ignore_label, where + file)
    if colors is not None:
        own_colors = _checked_colors(colors, names, where)
    if max_images is not None and max_images < 1:
        raise ValueError(f"{where}: max_images is {max_images}; it must be 1 or more, or not given")
    arguments: dict[str, Any] = {
        "image_root": images,
        "sem_seg_root": labels,
        "stuff_classes": names,
        "stuff_colors": own_colors,
        "ignore_label": ignore_label,
        "max_images": max_images,
    }
    set_on_error(name, on_error)
    if is_registered(name, arguments):
        return
    pairing = pair_images_with_labels(Path(images), Path(labels), where)
    error = pairing.error(where)
    if error is not None and on_error == "raise":
        raise error
    for message in pairing.left_out:
        logger.warning("%s: %s", where, message)
    register_scan(name, arguments, lambda: _scan(pairing, max_images))
    MetadataCatalog.get(name).set(
        image_root=images,
        sem_seg_root=labels,
        stuff_classes=names,
        stuff_colors=own_colors,
        ignore_label=ignore_label,
        evaluator_type="sem_seg",
    )


def read_class_names(
    classes: Sequence[str] | PathLike, name: str
) -> tuple[list[str], list[list[int]]]:
    """Class names and RGB colours from a list or a file; see :func:`register_sem_seg`.

    Args:
        classes: list of names, or path of a text or JSON file.
        name: of the data set, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file does not hold names.
    """
    source = f"data set {name!r}"
    entries: Any = classes
    if isinstance(classes, (str, Path)):
        path = optional_file(classes, "the class names (a list of names may be given too)", name)
        assert path is not None
        source = path
        text = read_text(path)
        if path.lower().endswith(".json"):
            try:
                entries = json.loads(text)
            except (ValueError, RecursionError) as error:
                defect = make_defect("json-invalid", path, "", f"{path} is not JSON: {error}")
                raise DataError(defect) from error
        else:
            entries = text.strip().splitlines()
    if not isinstance(entries, (list, tuple)):
        raise ValueError(
            f"{source}: class names must be a list of names or of dicts with `name`, "
            f"not {type(entries).__name__}"
        )
    dicts = []
    for index, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {"name": entry}
        label = entry.get("name")
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"{source}: class {index} needs a name; it is {entries[index]!r}")
        problem = color_problem(entry.get("color"))
        if problem:
            raise ValueError(f"{source}: class {index}: {problem}")
        dicts.append({**entry, "name": label.strip()})
    return [entry["name"] for entry in dicts], category_colors(dicts)


def _check_classes(names: list[str], ignore_label: int, where: str) -> None:
    if len(names) < 2:
        raise ValueError(
            f"{where} has {len(names)} classes ({', '.join(names)}), but a softmax over one class "
            f"means nothing: binary data need two names, such as background and foreground"
        )
    if len(names) > 255:
        raise ValueError(f"{where} has {len(names)} classes; label PNGs of 8 bit hold at most 255")
    twice = sorted({label for label in names if names.count(label) > 1})
    if twice:
        raise ValueError(
            f"{where}: the class name {twice[0]!r} comes {names.count(twice[0])} times"
        )
    if not 0 <= ignore_label <= 255:
        raise ValueError(f"{where}: ignore_label is {ignore_label}; label PNGs hold 0 to 255")
    if ignore_label < len(names):
        raise ValueError(
            f"{where}: ignore_label {ignore_label} is also the index of class "
            f"{names[ignore_label]!r}; take a value from {len(names)} to 255"
        )


def _checked_colors(colors: Sequence[Color], names: list[str], where: str) -> list[list[int]]:
    if len(colors) != len(names):
        raise ValueError(f"{where}: {len(colors)} colours for {len(names)} classes")
    for color, label in zip(colors, names):
        if color is None or color_problem(color):
            raise ValueError(
                f"{where}: the colour of {label!r} must be three numbers from 0 to 255, it is "
                f"{color!r}"
            )
    return [[int(value) for value in color] for color in colors]


def _scan(pairing: Pairing, max_images: int | None) -> Scan:
    scan = Scan(defects=pairing.defects(), lost=len(pairing.bare) + len(pairing.lone))
    for stem, image, label in pairing.pairs[:max_images]:
        record: dict[str, Any] = {"file_name": str(image), "image_id": stem}
        try:
            header = read_header(record)
        except DataError as error:
            assert error.defect is not None
            scan.defects.append(error.defect)
            scan.lost += 1
            continue
        # Detectron2 turns pictures as their EXIF tag says.
        height, width = header.size
        record.update(height=height, width=width, sem_seg_file_name=str(label))
        scan.records.append(record)
    return scan
