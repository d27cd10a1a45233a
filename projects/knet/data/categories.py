"""The classes of a data set: read from COCO's ``categories`` or a file of names; their metadata."""

from __future__ import annotations

import colorsys
import json
import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import Metadata

from knet.data.coco_file import check_keys, is_id, is_text, load_json
from knet.data.defects import Defect, Defects, failure, raise_first
from knet.files import read_text

_FIRST_BYTES = 1 << 16  # of a list of categories, before more is looked at
_BLOCK_BYTES = 1 << 20


def read_categories(json_file: str, *, panoptic: bool) -> list[dict[str, Any]]:
    """Reads and checks the categories of a COCO JSON, sorted by id.

    The annotations are not parsed: in COCO's files that takes half a minute, the categories
    a hundredth of a second.

    Args:
        json_file: COCO instance or panoptic annotations.
        panoptic: whether ``isthing`` must be there.

    Returns:
        Category dicts with at least ``id``, ``name`` and, if ``panoptic``, ``isthing``.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it is no JSON or has no categories, an id comes twice or is no whole number,
            a key is missing, ``isthing`` is neither 0 nor 1, or ``color`` is no RGB in 0 … 255.
    """
    path = Path(json_file)
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file at {path}")
    categories = _find_categories(path)
    if categories is None:
        categories = load_json(str(path)).get("categories")
    if not isinstance(categories, list) or not categories:
        problem = "has no `categories`: not a COCO annotation file"
        raise failure("no-categories", str(path), "", problem)
    raise_first(_category_errors(categories, str(path), panoptic))
    return sorted(categories, key=lambda category: category["id"])


def _find_categories(path: Path) -> list[dict[str, Any]] | None:
    """The list after the only `"categories": [`, or None where that is not a safe reading.

    It must be at the top level: `info` may hold anything. The file is not read into memory: it may
    be as large as that.
    """
    if not path.stat().st_size:
        return None
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = _key_places(data)
        if len(found) != 1:
            return None
        before, start = found[0]
        if _open_brackets(data, before) != (1, 0):
            return None
        length = _FIRST_BYTES
        while True:
            text = data[start : start + length].decode("utf-8", errors="replace")
            try:
                value, _ = json.JSONDecoder().raw_decode(text)
                return value if all(isinstance(item, dict) for item in value) else None
            except (ValueError, RecursionError):  # not JSON, or not all of it
                if start + length >= len(data):
                    return None
                length *= 8


def _key_places(data: mmap.mmap) -> list[tuple[int, int]]:
    """Where the key stands before a list, and where that begins, as often as that is."""
    places, place = [], data.find(b'"categories"')
    while place >= 0:
        found = re.compile(rb'"categories"\s*:\s*(?=\[)').match(data, place)
        if found is not None:
            places.append((place, found.end()))
        place = data.find(b'"categories"', place + 1)
    return places


def _open_brackets(data: mmap.mmap, end: int) -> tuple[int, int]:
    """How many braces and square brackets are open at a place."""
    opened = [0, 0]
    for start in range(0, end, _BLOCK_BYTES):
        block = data[start : min(start + _BLOCK_BYTES, end)]
        for kind, signs in enumerate((b"{}", b"[]")):
            opened[kind] += block.count(signs[:1]) - block.count(signs[1:])
    return opened[0], opened[1]


def _category_errors(categories: list[Any], path: str, panoptic: bool) -> list[Defect]:
    needed = ("id", "name") + (("isthing",) if panoptic else ())
    names: dict[int, str] = {}
    errors = Defects(path)
    for category in categories:
        found = errors.at(f"category {category}")
        if not isinstance(category, dict):
            found.add("bad-value", "is not an object")
        elif set(needed) - set(category) == {"isthing"}:
            mend = "give panoptic annotations, not an instances JSON"
            found.add("missing-key", "lacks isthing", mend=mend)
        elif check_keys(category, needed, found):
            flag, color = category.get("isthing", 0), _color_problem(category.get("color"))
            if not is_id(category["id"]) or not is_text(category["name"]):
                found.add("bad-value", "id must be a whole number and name a text")
            elif panoptic and (not isinstance(flag, int) or flag not in (0, 1)):
                found.add("bad-value", f"isthing is {flag!r}, not 0 (stuff) or 1 (a thing)")
            elif color:
                found.add("bad-value", color)
            elif category["id"] in names:
                both = f"as {names[category['id']]!r} and {category['name']!r}"
                problem = f"category id {category['id']} comes twice, {both}"
                errors.add("duplicate-category", problem)
            else:
                names[category["id"]] = category["name"]
        errors += found
    return errors


def category_warnings(categories: Sequence[dict[str, Any]], path: str) -> list[Defect]:
    """A defect for each name that a second category has."""
    first: dict[str, Any] = {}
    found = Defects(path)
    for category in categories:
        if category["name"] in first:
            problem = f"the name {category['name']!r} is also that of {first[category['name']]}"
            found.add("duplicate-category-name", problem, f"category {category['id']}")
        first.setdefault(category["name"], category["id"])
    return found


def panoptic_metadata(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """Metadata of a panoptic data set with T thing and S stuff categories.

    Contiguous ids are 0 … T-1 for things, T … T+S-1 for stuff, each in the order of the
    category ids.

    Args:
        categories: as :func:`read_categories` gives, with ``isthing``.

    Returns:
        ``thing_classes`` and ``thing_colors`` (T), ``stuff_classes`` and ``stuff_colors``
        (all T+S: Detectron2 indexes them by contiguous id),
        ``thing_dataset_id_to_contiguous_id`` (T), ``stuff_dataset_id_to_contiguous_id`` (all
        T+S: the semantic evaluator looks up things there too; code that asks for the kind
        of a category must look into the thing map first, as Detectron2 does).
    """
    things = [c for c in categories if c["isthing"]]
    ordered = things + [c for c in categories if not c["isthing"]]
    return {
        **instance_metadata(things),
        "stuff_classes": [c["name"] for c in ordered],
        "stuff_colors": _colors(ordered),
        "stuff_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(ordered)},
    }


def instance_metadata(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """Metadata of an instance data set: T names, T colours and the map of category ids."""
    return {
        "thing_classes": [c["name"] for c in categories],
        "thing_colors": _colors(categories),
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories)},
    }


def thing_ids(meta: Metadata) -> list[int] | None:
    """The classes that instances of a data set may have, sorted; None if its metadata name none."""
    # Cityscapes numbers its things 11 to 18, after the stuff, so their count is no bound.
    ids = meta.get("thing_dataset_id_to_contiguous_id")
    names = meta.get("thing_classes")
    return sorted(set(ids.values())) if ids else list(range(len(names))) if names else None


def read_class_names(
    classes: Sequence[str] | str | os.PathLike[str], source: str
) -> tuple[list[str], list[list[int]]]:
    """Class names and RGB colours from a list or a file; see :func:`knet.data.register_sem_seg`.

    Args:
        classes: list of names, or path of a text or JSON file.
        source: the data set, for messages.

    Raises:
        ValueError: if the file does not hold names.
    """
    entries: Any = classes
    if isinstance(classes, (str, Path)):
        source = str(classes)
        text = read_text(classes)
        entries = text.strip().splitlines()
        if source.lower().endswith(".json"):
            try:
                entries = json.loads(text)
            except (ValueError, RecursionError) as error:
                problem = f"{source} is not JSON: {error}"
                raise failure("json-invalid", source, "", problem) from error
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
        problem = _color_problem(entry.get("color"))
        if problem:
            raise ValueError(f"{source}: class {index}: {problem}")
        dicts.append({**entry, "name": label.strip()})
    return [entry["name"] for entry in dicts], _colors(dicts)


def check_classes(names: list[str], ignore_label: int, where: str) -> None:
    """Raises ValueError if label PNGs cannot tell these classes and the ignored label apart."""
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


def checked_colors(
    colors: Sequence[Sequence[int]], names: list[str], where: str
) -> list[list[int]]:
    """One RGB colour for each class; ValueError if they are not."""
    if len(colors) != len(names):
        raise ValueError(f"{where}: {len(colors)} colours for {len(names)} classes")
    for color, label in zip(colors, names):
        if color is None or _color_problem(color):
            raise ValueError(
                f"{where}: the colour of {label!r} must be three numbers from 0 to 255, it is "
                f"{color!r}"
            )
    return [[int(value) for value in color] for color in colors]


def _color_problem(color: Any) -> str:
    """What is wrong with a colour: not three whole numbers in 0 … 255, and not None; or ""."""
    if color is None:
        return ""
    three = isinstance(color, (list, tuple)) and len(color) == 3
    if three and all(is_id(value) and 0 <= value <= 255 for value in color):
        return ""
    return f"color is {color!r}, not three whole numbers from 0 to 255"


def _colors(categories: list[dict[str, Any]]) -> list[list[int]]:
    """RGB in 0 … 255 of each category; where none is given, hues a golden angle apart."""
    colors = []
    for index, category in enumerate(categories):
        given = category.get("color")
        if given is None:
            hue = (index * 0.618033988749895) % 1.0
            rgb = colorsys.hsv_to_rgb(hue, 0.85 - 0.3 * (index % 2), 0.95 - 0.25 * (index % 3) / 2)
            given = [round(255 * v) for v in rgb]
        colors.append([int(v) for v in given])
    return colors
