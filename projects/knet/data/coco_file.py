"""What the readers of COCO's two kinds of JSON share: the file, its entries, its images."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from knet.data.defects import Defect, Defects, failure, make_defect
from knet.data.progress import progressing

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
        raise failure("json-invalid", path, "", f"is not JSON: {error}") from error
    except RecursionError as error:
        problem = "is not COCO's JSON: lists or objects within each other without end"
        raise failure("json-invalid", path, "", problem) from error
    if not isinstance(content, dict):
        problem = f"holds a {type(content).__name__}, not an object with `images`, `categories` …"
        raise failure("json-invalid", path, "", problem)
    return content


def entries(
    content: Mapping[str, Any], key: str, defects: Defects
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(position, entry) of each dict in a list of the file; adds a defect for all else.

    Raises:
        DataError: if the list itself is missing or no list.
    """
    if key not in content:
        raise failure("missing-key", defects.file, "", f"lacks `{key}`")
    if not isinstance(content[key], list):
        raise failure("bad-value", defects.file, "", f"`{key}` is no list")
    name = f"checking {os.path.basename(defects.file)}"
    for position, entry in enumerate(progressing(content[key], name, key)):
        if isinstance(entry, dict):
            yield position, entry
        else:
            problem = f"is a {type(entry).__name__}, not an object"
            defects.add("bad-value", problem, f"{key}[{position}]")


def is_id(value: Any, *, text: bool = False) -> bool:
    """Whether a value can be an id: a whole number, or also text."""
    if isinstance(value, str):
        return text
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


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


# key → whether a value is right, and what it should be
Rules = Mapping[str, tuple[Callable[[Any], bool], str]]
IMAGE_RULES: Rules = {
    "id": (lambda value: is_id(value, text=True), "a whole number or text"),
    "file_name": (lambda value: value and is_text(value), "a path"),
    "height": (is_count, "a number of pixels"),
    "width": (is_count, "a number of pixels"),
}
LABEL_RULES: Rules = {
    "iscrowd": (lambda value: value in (0, 1), "0 or 1"),
    "area": (is_number, "a number of pixels"),
}


def check_keys(entry: Mapping[str, Any], needed: Iterable[str], found: Defects) -> bool:
    """Whether an entry has these keys; else adds a defect."""
    missing = [key for key in needed if key not in entry]
    if missing:
        found.add("missing-key", f"lacks {', '.join(missing)}")
    return not missing


def check_values(entry: Mapping[str, Any], rules: Rules, found: Defects) -> bool:
    """Whether what an entry has of some keys is right; else adds a defect of each."""
    wrong = [key for key, (right, _) in rules.items() if key in entry and not right(entry[key])]
    for key in wrong:
        found.add("bad-value", f"{key} is {entry[key]!r}, not {rules[key][1]}")
    return not wrong


def check_numbers(entry: Mapping[str, Any], keys: tuple[str, ...], found: Defects) -> bool:
    """Whether these keys are there and hold whole numbers; else adds defects."""
    right = check_keys(entry, keys, found)
    return check_values(entry, dict.fromkeys(keys, (is_id, "a whole number")), found) and right


def image_part(image: Mapping[str, Any], image_root: str) -> dict[str, Any]:
    """What a record takes from an entry of ``images``."""
    record = {"file_name": os.path.join(image_root, image["file_name"]), "image_id": image["id"]}
    record.update({key: int(image[key]) for key in ("height", "width") if key in image})
    return record


def read_images(
    content: Mapping[str, Any], defects: Defects, *, sizes: bool
) -> tuple[dict[Any, dict[str, Any]], set[Any]]:
    """The usable images of a file by id.

    Args:
        content: of the file.
        defects: of the file; what is wrong is added to it.
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
        raise failure("no-images", defects.file, "", "holds no images")
    needed = ("id", "file_name") + (("height", "width") if sizes else ())
    for position, image in entries(content, "images", defects):
        known = is_id(image.get("id"), text=True)
        found = defects.at(f"image {image['id']}" if known else f"images[{position}]")
        check_keys(image, needed, found)
        check_values(image, IMAGE_RULES, found)
        if not found and image.get("height", 0) * image.get("width", 0) > _MOST_PIXELS:
            sides = f"height {image['height']} times width {image['width']}"
            found.add("bad-value", f"{sides} is no picture's size")
        if not found and image["id"] in images:
            names = f"{images[image['id']]['file_name']!r} and {image['file_name']!r}"
            found.add("duplicate-image-id", f"the id comes twice, for {names}")
        elif not found:
            images[image["id"]] = image
        if found and known:
            broken.add(image["id"])
        defects += found
    text = next((key for key in images if isinstance(key, str)), None)
    number = next((key for key in images if not isinstance(key, str)), None)
    if text is not None and number is not None:
        problem = f"some image ids are text ({text!r}), others numbers ({number})"
        defects.add("mixed-image-ids", problem)
    return images, broken


def find_image(
    entry: Mapping[str, Any],
    images: Mapping[Any, dict[str, Any]],
    broken: Collection[Any],
    found: Defects,
    record: str,
) -> dict[str, Any] | None:
    """The image of an annotation, None if it has none; adds a defect if nobody has its id.

    ``images`` and ``broken`` are those of :func:`read_images`, ``record`` names the annotation.
    """
    image_id = entry.get("image_id")
    known = is_id(image_id, text=True)
    if known and image_id in images:
        return images[image_id]
    if "image_id" not in entry or (known and image_id in broken):
        return None
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
    found.add("orphan-annotation", problem, record)
    return None


def shared_files(
    records: Sequence[Mapping[str, Any]],
    key: str,
    path: str,
    labels: Callable[[Mapping[str, Any]], Any] | None = None,
) -> dict[int, Defect]:
    """A defect of each record whose file is also that of an earlier one, by position.

    Args:
        records: of a data set, read from the annotations at ``path``.
        key: of the file's path in them.
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
