"""Reads the ``categories`` of COCO annotations and derives Detectron2's metadata from them."""

from __future__ import annotations

import colorsys
import json
import re
from pathlib import Path
from typing import Any

__all__ = ["category_colors", "instance_metadata", "panoptic_metadata", "read_categories"]


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
        ValueError: if it has no categories, an id comes twice, or a key is missing.
    """
    path = Path(json_file)
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file at {path}")
    text = path.read_text(encoding="utf-8")
    categories = _find_categories(text)
    if categories is None:
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        categories = content.get("categories") if isinstance(content, dict) else None
    if not categories:
        raise ValueError(f"{path} has no `categories`: not a COCO annotation file")
    needed = {"id", "name"} | ({"isthing"} if panoptic else set())
    names: dict[int, str] = {}
    for category in categories:
        missing = needed - set(category)
        if missing:
            hint = "; an instances JSON is no panoptic one" if missing == {"isthing"} else ""
            raise ValueError(f"{path}: category {category} lacks {sorted(missing)}{hint}")
        if category["id"] in names:
            raise ValueError(
                f"{path}: category id {category['id']} comes twice, as "
                f"{names[category['id']]!r} and {category['name']!r}"
            )
        names[category["id"]] = category["name"]
    return sorted(categories, key=lambda category: category["id"])


def _find_categories(text: str) -> list[dict[str, Any]] | None:
    """The list after the only `"categories": [`, or None where that is not a safe reading."""
    found = list(re.finditer(r'"categories"\s*:\s*(?=\[)', text))
    if len(found) != 1:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, found[0].end())
    except ValueError:
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
