"""YOLO segmentation: ``data.yaml`` and a text file for each picture, one polygon a line."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import Any

import yaml

from knet.data.defects import DataError, failure
from knet.data.formats.class_list import find_classes
from knet.data.formats.found import Found
from knet.data.formats.maps import PaintedSource
from knet.data.formats.objects import Object, ObjectSource, Size
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree, chosen_task, part_of, spread, stem_of
from knet.files import read_text

NAME = "YOLO segmentation"
_SAMPLE = 50  # label files that recognition reads
_BOX = 5  # numbers in a line: class, centre x and y, width, height
_BEYOND = 0.05  # of a side, that a point may lie outside


def find(tree: Tree, task: str | None) -> Found | None:
    """The folder as this format; None if it is not; DataError if its labels are boxes."""
    config, content = _read_yaml(tree)
    pictures = {stem_of(path): path for path in tree.pictures}
    labels = {}  # picture → label file
    for path in tree.ending(".txt"):
        stem = _picture_stem(stem_of(path))
        picture = pictures.get(stem) or pictures.get(stem_of(path))
        if picture:
            labels[picture] = path
    sample = spread(sorted(labels.values()), _SAMPLE)
    lines = [line for path in sample for line in read_text(tree.root / path).splitlines()]
    rows = [line.split() for line in lines if line.strip()]
    numeric = all(_is_number(word) for row in rows for word in row)
    if not rows or not (numeric or config):
        return None
    if all(len(row) == _BOX for row in rows):
        raise DataError(
            f"{tree.root} looks like {NAME}, but its labels are boxes (5 numbers a line, as in "
            f"{sample[0]}): K-Net learns from masks; export polygons (class x1 y1 x2 y2 x3 y3 …)"
        )
    names, where = _names(tree, content, config)
    parts = _parts(tree, content, config)
    items = [
        Item(path, labels.get(path, ""), parts.get(path, "") if parts else part_of(path))
        for path in tree.pictures
        if path in labels or _has_place(path, labels)
    ]
    if parts:
        items = [item for item in items if item.part]
    source: Any = YoloSource(tree, names)
    chosen = chosen_task(task, ("instance", "semantic"), f"{tree.root}: YOLO's polygons")
    if chosen == "semantic":
        source = PaintedSource(source)
    bare = sum(not item.label for item in items)
    notes = [f"{tree.root} was taken for {NAME}: {len(items)} pictures, {where}"]
    if bare:
        notes.append(f"pictures without a label file: {bare}; they count as background")
    return Found(NAME, chosen, items, source, notes)


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", word.lower()) is not None


def _picture_stem(stem: str) -> str:
    """``images/…`` for ``labels/…``, the last such folder, as YOLO's own programs have it."""
    before, found, after = f"/{stem}".rpartition("/labels/")
    return f"{before}/images/{after}"[1:] if found else stem


def _has_place(picture: str, labels: dict[str, str]) -> bool:
    """Whether other pictures of the folder have labels: this one then shows background."""
    folder = os.path.dirname(picture)
    return any(os.path.dirname(path) == folder for path in labels)


def _read_yaml(tree: Tree) -> tuple[str, dict[str, Any]]:
    """Path and content of the yaml file that lists `names`; empty if there is none."""
    for path in sorted(tree.ending(".yaml", ".yml"), key=lambda path: (path.count("/"), path)):
        try:
            content = yaml.safe_load(read_text(tree.root / path))
        except yaml.YAMLError as error:
            text = " ".join(str(error).split())
            raise DataError(f"{tree.root / path} is not YAML: {text}; correct it") from error
        if isinstance(content, dict) and isinstance(content.get("names"), (list, dict)):
            return path, content
    return "", {}


def _names(tree: Tree, content: dict[str, Any], config: str) -> tuple[list[str] | None, str]:
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(
                f"{tree.root / config}: `names` must number the classes from 0 to "
                f"{len(names) - 1}, it has {sorted(names, key=str)}"
            )
        names = [names[index] for index in range(len(names))]
    if names:
        names = [str(name) for name in names]
        if len(set(names)) < len(names):
            raise DataError(f"{tree.root / config}: a name comes twice in `names`; rename one")
        return names, f"{len(names)} classes from {config}"
    listed = find_classes(tree)
    if listed:
        return [c.name for c in listed[1]], f"{len(listed[1])} classes from {listed[0]}"
    return None, "no list of classes, so that these are named by their numbers"


def _parts(tree: Tree, content: dict[str, Any], config: str) -> dict[str, str]:
    """picture → part, as the yaml file says."""
    base = os.path.normpath(os.path.join(os.path.dirname(config), str(content.get("path") or "")))
    found: dict[str, str] = {}
    for part, keys in (("test", ("test",)), ("val", ("val", "valid")), ("train", ("train",))):
        values: Any = next((content[key] for key in keys if content.get(key)), [])
        for value in values if isinstance(values, list) else [values]:
            for picture in _pictures_of(tree, str(value).replace("\\", "/"), base):
                found[picture] = part
    return found if "train" in found.values() else {}


def _pictures_of(tree: Tree, value: str, base: str) -> list[str]:
    """The pictures of a folder or list of the yaml file, whose paths are often those elsewhere."""
    names = [part for part in PurePosixPath(value).parts if part not in ("..", ".", "/")]
    tails = ["/".join(names[start:]) for start in range(len(names))]
    for path in [os.path.normpath(os.path.join(base, value)), *tails]:
        if path in tree and path.endswith(".txt"):
            listed = [line.strip() for line in read_text(tree.root / path).splitlines()]
            return [p for line in listed if line for p in _pictures_of(tree, line, base)]
        if path in tree:
            return [path]
        below = [p for p in tree.pictures if p.startswith(f"{path}/")]
        if below:
            return below
    return []


class YoloSource(ObjectSource):
    """Polygons in shares of the picture's sides."""

    def __init__(self, tree: Tree, names: list[str] | None) -> None:
        super().__init__(tree, names)
        self.boxes = 0  # lines that are one

    def objects(self, item: Item) -> tuple[Size, list[Object]]:
        """As of :class:`ObjectSource`; a box among polygons is taken as its rectangle."""
        size = self.tree.size(item.image)
        if not item.label:
            return size, []
        path = str(self.tree.root / item.label)
        objects = []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if line.strip():
                objects.append(self._object(line.split(), size, path, f"line {number}"))
        return size, objects

    def _object(self, words: list[str], size: Size, path: str, line: str) -> Object:
        if not all(map(_is_number, words)) or not words[0].isdecimal():
            problem = f"{' '.join(words)[:60]!r} is not a class number and coordinates"
            raise failure("bad-value", path, line, problem)
        index, values = int(words[0]), [float(word) for word in words[1:]]
        if self.names is not None and index >= len(self.names):
            problem = f"class {index}, but there are {len(self.names)}, from 0"
            raise failure("unknown-category", path, line, problem, mend="name it in data.yaml")
        if len(values) == _BOX - 1:
            x, y, width, height = values
            left, right, top, low = x - width / 2, x + width / 2, y - height / 2, y + height / 2
            values = [left, top, right, top, right, low, left, low]
            self._count_box()
        if len(values) < 6 or len(values) % 2:
            problem = f"{len(values)} coordinates are no polygon"
            raise failure("polygon-empty", path, line, problem)
        if min(values) < -_BEYOND or max(values) > 1 + _BEYOND:
            problem = f"coordinates from {min(values):g} to {max(values):g}"
            mend = "they are shares of width and height, from 0 to 1"
            raise failure("polygon-coordinates", path, line, problem, mend=mend)
        sides = (size[1], size[0]) * (len(values) // 2)
        polygon = [round(min(max(v, 0.0), 1.0) * side, 2) for v, side in zip(values, sides)]
        return Object(self.names[index] if self.names else f"class {index}", [polygon])

    def _count_box(self) -> None:
        if not self.boxes:
            self.notes.append("some labels are boxes; their rectangles stand for the masks")
        self.boxes += 1
