"""Reads the file that names the classes beside label maps: text, CSV or JSON of several tools."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from knet.data.defects import DataError, failure
from knet.data.formats.tree import Tree
from knet.files import read_text

_STEMS = {
    *("classes", "_classes", "class_dict", "class_names", "classnames", "class_list"),
    *("label_colors", "label_colours", "labelmap", "label_map", "labels", "codes", "names"),
    *("categories", "obj", "colors", "colours", "palette"),
}
_SUFFIXES = {".txt", ".csv", ".json", ".names"}
# names that mean `no label`
_VOID = {
    *("void", "unlabeled", "unlabelled", "ignore", "ignored", "ignore label", "no label"),
    *("nolabel", "dont care", "don't care", "dontcare", "__ignore__"),
}
Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelClass:
    """A class as its file gives it: name, value in the maps or None, RGB or None."""

    name: str
    value: int | None = None
    color: Color | None = None

    @property
    def is_void(self) -> bool:
        """Whether its pixels have no label."""
        return re.sub(r"[\s_-]+", " ", self.name.lower()).strip() in {
            re.sub(r"[\s_-]+", " ", name).strip() for name in _VOID
        }


def find_classes(tree: Tree) -> tuple[str, list[LabelClass]] | None:
    """The path and the classes of the file nearest to the folder's top; None: there is none.

    Raises:
        DataError: a name or colour comes twice, or the file holds no names.
    """
    candidates = [
        path
        for path in tree.ending(*_SUFFIXES)
        if PurePosixPath(path).stem.lower() in _STEMS and PurePosixPath(path).name != "result.json"
    ]
    for path in sorted(candidates, key=lambda path: (path.count("/"), path)):
        classes = read_classes(tree.root / path)
        if classes:
            return path, classes
    return None


def read_classes(path: Path) -> list[LabelClass]:
    """The classes of a file, by value where it gives any; none if it is no list of classes.

    Raises:
        DataError: a name, value or colour comes twice, or it is no JSON.
        ValueError: it is not UTF-8.
    """
    text = read_text(path)
    if path.suffix.lower() == ".json":
        try:
            classes = list(_from_json(json.loads(text)))
        except ValueError as error:
            raise failure("json-invalid", str(path), "", f"is not JSON: {error}") from error
    elif path.suffix.lower() == ".csv":
        classes = list(_from_csv(text))
    else:
        lines = [line.strip() for line in text.splitlines()]
        classes = [_from_line(line) for line in lines if line and not line.startswith("#")]
    for what in ("name", "value", "color"):
        given = [getattr(c, what) for c in classes if getattr(c, what) is not None]
        twice = next((value for value in given if given.count(value) > 1), None)
        if twice is not None:
            raise DataError(f"{path}: the {what} {twice!r} is that of two classes; correct one")
    if any(c.value is None for c in classes):
        return classes
    return sorted(classes, key=lambda c: c.value or 0)


def _from_line(line: str) -> LabelClass:
    """``name``, ``3 name``, ``name R G B``, ``R G B name`` or CVAT's ``name:R,G,B:…``."""
    if ":" in line and not re.match(r"\d+\s*:", line):
        name, color, *_ = line.split(":")
        return LabelClass(name.strip(), color=_color(re.findall(r"\d+", color)))
    words = re.split(r"[\s,;:]+", line)
    if len(words) > 3:
        for three, rest in ((words[-3:], words[:-3]), (words[:3], words[3:])):
            rgb = _color(three)
            if rgb is not None:
                return LabelClass(" ".join(rest), color=rgb)
    if len(words) > 1 and words[0].isdecimal():
        return LabelClass(" ".join(words[1:]), value=int(words[0]))
    return LabelClass(line)


def _from_csv(text: str) -> Iterable[LabelClass]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(row)]
    head = [cell.lower() for cell in rows[0]] if rows else []
    places = {
        "name": _place(head, r"name|class(?:es)?|label"),
        "value": _place(head, r"(?:pixel )?value|index|id|pixel"),
        **{color: _place(head, rf"{color}|{color[0]}") for color in ("red", "green", "blue")},
    }
    if any(re.search(r"file|image|path", cell) for cell in head):
        return  # a table of pictures
    if places["name"] is None:  # no header
        for row in rows:
            yield _from_line(",".join(row))
        return
    for row in rows[1:]:
        own = {k: row[i] for k, i in places.items() if i is not None and i < len(row)}
        value = own.get("value", "")
        rgb = _color([own.get(color, "") for color in ("red", "green", "blue")])
        yield LabelClass(own.get("name", ""), int(value) if value.isdecimal() else None, rgb)


def _place(head: list[str], pattern: str) -> int | None:
    return next((i for i, cell in enumerate(head) if re.fullmatch(pattern, cell)), None)


def _from_json(content: Any) -> Iterable[LabelClass]:
    if isinstance(content, dict):
        inner = next((content[k] for k in ("classes", "names", "labels") if k in content), None)
        if inner is not None:
            yield from _from_json(inner)
            return
        for key, value in content.items():
            if isinstance(value, int):
                yield LabelClass(key, value=value)
            elif isinstance(value, str) and key.isdecimal():
                yield LabelClass(value, value=int(key))
            elif isinstance(value, list):
                yield LabelClass(key, color=_color(value))
    elif isinstance(content, list):
        for entry in content:
            if isinstance(entry, str):
                yield LabelClass(entry)
            elif isinstance(entry, dict):
                name = entry.get("name", entry.get("title", entry.get("label")))
                value = entry.get("value", entry.get("id"))
                color = entry.get("color", entry.get("colour"))
                if isinstance(name, str):
                    own = value if isinstance(value, int) else None
                    rgb = _color(color) if isinstance(color, list) else None
                    yield LabelClass(name, own, rgb)


def _color(values: Iterable[Any]) -> Color | None:
    """Three whole numbers from 0 to 255, or None."""
    texts = [str(value) for value in values]
    if len(texts) != 3 or not all(text.isdecimal() and int(text) < 256 for text in texts):
        return None
    red, green, blue = map(int, texts)
    return red, green, blue
