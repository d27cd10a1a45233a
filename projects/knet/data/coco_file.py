"""What the readers of COCO's two kinds of JSON share: the file, its entries, its images."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from knet.data.defects import DataError, Defect, Defects, make_defect

_LONGEST_SIDE = 10**6  # more is no picture, and would cost memory without end
_MOST_PIXELS = 2**32 - 1  # of a picture: run lengths hold no more


def load_json(path: str) -> dict[str, Any]:
    """The content of a JSON file that holds one object.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it is no JSON, or no object.
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            content = json.load(stream)
    except ValueError as error:  # JSON's and the decoder's errors are both one
        raise DataError(make_defect("json-invalid", path, "", f"is not JSON: {error}")) from error
    except RecursionError as error:
        problem = "is not COCO's JSON: lists or objects within each other without end"
        raise DataError(make_defect("json-invalid", path, "", problem)) from error
    if not isinstance(content, dict):
        problem = f"holds a {type(content).__name__}, not an object with `images`, `categories` …"
        raise DataError(make_defect("json-invalid", path, "", problem))
    return content


def entries(
    content: Mapping[str, Any], key: str, path: str, defects: Defects
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(position, entry) of each dict in a list of the file; adds a defect for all else.

    Raises:
        DataError: if the list itself is missing or no list.
    """
    if not isinstance(content.get(key), list):
        kind = "bad-value" if key in content else "missing-key"
        problem = f"`{key}` is no list" if key in content else f"lacks `{key}`"
        raise DataError(make_defect(kind, path, "", problem))
    for position, entry in enumerate(content[key]):
        if isinstance(entry, dict):
            yield position, entry
        else:
            problem = f"is a {type(entry).__name__}, not an object"
            defects.add("bad-value", path, f"{key}[{position}]", problem)


def is_id(value: Any, *, text: bool = False) -> bool:
    """Whether a value can be an id: a whole number, or also text."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        text and isinstance(value, str)
    )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that NumPy can hold, and no bool."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def is_box(value: Any) -> bool:
    """Whether a value can be a box: four numbers."""
    four = isinstance(value, (list, tuple, np.ndarray)) and len(value) == 4
    return four and all(map(is_number, value))


def is_count(value: Any) -> bool:
    """Whether a value is a whole number above 0, as a picture's sides are; 64.0 is one too."""
    return is_number(value) and 0 < value <= _LONGEST_SIDE and value == int(value)


def is_text(value: Any) -> bool:
    """Whether a value is text that can be printed and written; it may be empty."""
    if not isinstance(value, str) or "\0" in value:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)  # half a character


def missing_keys(
    entry: Mapping[str, Any], needed: tuple[str, ...], path: str, record: str
) -> list[Defect]:
    """A defect for the keys that an entry lacks."""
    missing = [key for key in needed if key not in entry]
    if not missing:
        return []
    return [make_defect("missing-key", path, record, f"lacks {', '.join(missing)}")]


def number_defects(
    entry: Mapping[str, Any], keys: tuple[str, ...], path: str, record: str
) -> list[Defect]:
    """Defects of keys that must hold whole numbers: missing, or something else."""
    found = Defects(missing_keys(entry, keys, path, record))
    for key in keys:
        value = entry.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            found.add("bad-value", path, record, f"{key} is {value!r}, not a whole number")
    return found


def value_defects(entry: Mapping[str, Any], path: str, record: str) -> list[Defect]:
    """Defects of what annotations and segments may have: iscrowd and area."""
    found = Defects()
    if entry.get("iscrowd", 0) not in (0, 1):
        found.add("bad-value", path, record, f"iscrowd is {entry['iscrowd']!r}, not 0 or 1")
    if not is_number(entry.get("area", 0)):
        found.add("bad-value", path, record, f"area is {entry['area']!r}, not a number of pixels")
    return found


def image_part(image: Mapping[str, Any], image_root: str) -> dict[str, Any]:
    """What a record takes from an entry of ``images``."""
    record = {"file_name": os.path.join(image_root, image["file_name"]), "image_id": image["id"]}
    record.update({key: int(image[key]) for key in ("height", "width") if key in image})
    return record


def read_images(
    content: Mapping[str, Any], path: str, defects: Defects, *, sizes: bool
) -> tuple[dict[Any, dict[str, Any]], set[Any]]:
    """The usable images of a file by id.

    Args:
        content: of the file.
        path: of the file, for defects.
        defects: what is wrong is added to it.
        sizes: whether height and width must be there.

    Raises:
        DataError: if there is no list of images, or none in it.

    Returns:
        Images by id, in the order of the file, and the ids whose image cannot be used (images
        without a usable id are in neither). An id that comes twice is in both: its first image
        can be looked at, but annotations of it belong to nobody knows which.
    """
    images: dict[Any, dict[str, Any]] = {}
    broken: set[Any] = set()
    if content.get("images") == []:
        raise DataError(make_defect("no-images", path, "", "holds no images"))
    needed = ("id", "file_name") + (("height", "width") if sizes else ())
    for position, image in entries(content, "images", path, defects):
        known = is_id(image.get("id"), text=True)
        record = f"image {image['id']}" if known else f"images[{position}]"
        found = Defects(missing_keys(image, needed, path, record))
        if "id" in image and not known:
            problem = f"id is {image['id']!r}, not a whole number or text"
            found.add("bad-value", path, record, problem)
        if "file_name" in image and not (image["file_name"] and is_text(image["file_name"])):
            problem = f"file_name is {image['file_name']!r}, not a path"
            found.add("bad-value", path, record, problem)
        for key in ("height", "width"):
            if key in image and not is_count(image[key]):
                problem = f"{key} is {image[key]!r}, not a number of pixels"
                found.add("bad-value", path, record, problem)
        if not found and image.get("height", 0) * image.get("width", 0) > _MOST_PIXELS:
            problem = f"height {image['height']} times width {image['width']} is no picture's size"
            found.add("bad-value", path, record, problem)
        if not found and image["id"] in images:
            names = f"{images[image['id']]['file_name']!r} and {image['file_name']!r}"
            found.add("duplicate-image-id", path, record, f"the id comes twice, for {names}")
        elif not found:
            images[image["id"]] = image
        if found and known:
            broken.add(image["id"])
        defects += found
    text = next((key for key in images if isinstance(key, str)), None)
    number = next((key for key in images if not isinstance(key, str)), None)
    if text is not None and number is not None:
        problem = f"some image ids are text ({text!r}), others numbers ({number})"
        defects.add("mixed-image-ids", path, "", problem)
    return images, broken


def find_image(
    entry: Mapping[str, Any],
    images: Mapping[Any, dict[str, Any]],
    broken: Collection[Any],
    path: str,
    record: str,
) -> tuple[dict[str, Any] | None, list[Defect]]:
    """The image of an annotation, None if it has none, and a defect if nobody has its id.

    Args:
        entry: the annotation.
        images, broken: as :func:`read_images` gives.
        path, record: of the annotation, for the defect.
    """
    image_id = entry.get("image_id")
    known = is_id(image_id, text=True)
    if known and image_id in images:
        return images[image_id], []
    if "image_id" not in entry or (known and image_id in broken):
        return None, []
    problem = f"image_id {image_id!r} is no image's id"
    other: Any = None
    if isinstance(image_id, str):
        other = int(image_id) if image_id.isdecimal() and len(image_id) < 20 else None
    elif known:
        other = str(image_id)
    elif isinstance(image_id, (int, float)):  # 1.0 and true are keys equal to 1
        other = int(image_id) if image_id in images else None
    if other in images:
        problem += f": the image's is {other!r}, of another type"
    return None, [make_defect("orphan-annotation", path, record, problem)]


def shared_files(
    records: Sequence[Mapping[str, Any]],
    key: str,
    path: str,
    labels: Callable[[Mapping[str, Any]], Any] | None = None,
) -> dict[int, Defect]:
    """A defect of each record whose file is also that of an earlier one, by position.

    Args:
        records: of a data set.
        key: of the file's path in them.
        path: of the annotations, for the defects.
        labels: what is evaluated under the file's name; it is an error if they differ. None: a
            warning in any case.
    """
    first: dict[str, Mapping[str, Any]] = {}
    found = {}
    for index, record in enumerate(records):
        other = first.setdefault(record[key], record) if key in record else record
        if other is record:
            continue
        differ = labels is not None and labels(record) != labels(other)
        problem = f"its file {os.path.basename(record[key])!r} is also that of image "
        problem += f"{other['image_id']}" + (", with other labels" if differ else "")
        severity = "error" if differ else "warning"
        name = f"image {record['image_id']}"
        found[index] = make_defect("shared-file", path, name, problem, severity=severity)
    return found
