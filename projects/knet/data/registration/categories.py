"""Reads the ``categories`` of COCO annotations and derives Detectron2's metadata from them."""

from __future__ import annotations

import colorsys
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from knet.data.annotations.coco_file import is_id, is_text, load_json, missing_keys
from knet.data.defects import DataError, Defect, make_defect, raise_first

__all__ = [
    "category_colors",
    "category_warnings",
    "color_problem",
    "instance_metadata",
    "panoptic_metadata",
    "read_categories",
]


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
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    categories = _find_categories(text)
    if categories is None:
        categories = load_json(str(path)).get("categories")
    if not isinstance(categories, list) or not categories:
        problem = "has no `categories`: not a COCO annotation file"
        raise DataError(make_defect("no-categories", str(path), "", problem))
    raise_first(_category_errors(categories, str(path), panoptic))
    return sorted(categories, key=lambda category: category["id"])


def category_warnings(categories: Sequence[dict[str, Any]], path: str) -> list[Defect]:
    """A defect for each name that a second category has."""
    first: dict[str, Any] = {}
    found = []
    for category in categories:
        if category["name"] in first:
            problem = f"the name {category['name']!r} is also that of {first[category['name']]}"
            record = f"category {category['id']}"
            found.append(make_defect("duplicate-category-name", path, record, problem))
        first.setdefault(category["name"], category["id"])
    return found


def _category_errors(categories: list[Any], path: str, panoptic: bool) -> list[Defect]:
    needed = ("id", "name") + (("isthing",) if panoptic else ())
    names: dict[int, str] = {}
    found = []
    for category in categories:
        record = f"category {category}"
        if not isinstance(category, dict):
            found.append(make_defect("bad-value", path, record, "is not an object"))
            continue
        if set(needed) - set(category) == {"isthing"}:
            problem, mend = "lacks isthing", "give panoptic annotations, not an instances JSON"
            found.append(make_defect("missing-key", path, record, problem, mend=mend))
            continue
        lacking = missing_keys(category, needed, path, record)
        found += lacking
        if lacking:
            continue
        flag, color = category.get("isthing", 0), color_problem(category.get("color"))
        if not is_id(category["id"]) or not is_text(category["name"]):
            problem = "id must be a whole number and name a text"
            found.append(make_defect("bad-value", path, record, problem))
        elif panoptic and (not isinstance(flag, int) or flag not in (0, 1)):
            problem = f"isthing is {flag!r}, not 0 (stuff) or 1 (a thing)"
            found.append(make_defect("bad-value", path, record, problem))
        elif color:
            found.append(make_defect("bad-value", path, record, color))
        elif category["id"] in names:
            problem = (
                f"category id {category['id']} comes twice, as {names[category['id']]!r} and "
                f"{category['name']!r}"
            )
            found.append(make_defect("duplicate-category", path, "", problem))
        else:
            names[category["id"]] = category["name"]
    return found


def _find_categories(text: str) -> list[dict[str, Any]] | None:
    """The list after the only `"categories": [`, or None where that is not a safe reading.

    It must be at the top level: `info` may hold anything.
    """
    found = list(re.finditer(r'"categories"\s*:\s*(?=\[)', text))
    if len(found) != 1:
        return None
    before = found[0].start()
    opened, closed = ([text.count(sign, 0, before) for sign in signs] for signs in ("{[", "}]"))
    if (opened[0] - closed[0], opened[1] - closed[1]) != (1, 0):
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, found[0].end())
    except (ValueError, RecursionError):
        return None
    return value if all(isinstance(item, dict) for item in value) else None


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
    ordered = [c for c in categories if c["isthing"]] + [c for c in categories if not c["isthing"]]
    num_things = sum(bool(c["isthing"]) for c in categories)
    names = [c["name"] for c in ordered]
    colors = category_colors(ordered)
    contiguous = {c["id"]: index for index, c in enumerate(ordered)}
    return {
        "thing_classes": names[:num_things],
        "thing_colors": colors[:num_things],
        "stuff_classes": names,
        "stuff_colors": colors,
        "thing_dataset_id_to_contiguous_id": {
            category: index for category, index in contiguous.items() if index < num_things
        },
        "stuff_dataset_id_to_contiguous_id": contiguous,
    }


def instance_metadata(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """Metadata of an instance data set: T names, T colours and the map of category ids."""
    return {
        "thing_classes": [c["name"] for c in categories],
        "thing_colors": category_colors(categories),
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories)},
    }


def color_problem(color: Any) -> str:
    """What is wrong with a colour: not three whole numbers in 0 … 255, and not None; or ""."""
    if color is None:
        return ""
    three = isinstance(color, (list, tuple)) and len(color) == 3
    if three and all(is_id(value) and 0 <= value <= 255 for value in color):
        return ""
    return f"color is {color!r}, not three whole numbers from 0 to 255"


def category_colors(categories: list[dict[str, Any]]) -> list[list[int]]:
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
