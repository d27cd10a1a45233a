"""Pictures with label PNGs: of classes, of colours, or with a number for each object."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from knet.data.defects import DataError, failure
from knet.data.formats.class_list import LabelClass, find_classes
from knet.data.formats.found import Found
from knet.data.formats.label_values import LabelMapSource, read_codes, read_values
from knet.data.formats.maps import BACKGROUND, PaintedSource
from knet.data.formats.objects import Object, ObjectSource, Size
from knet.data.formats.pairs import find_pairs
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree, chosen_task, spread

CLASSES, OBJECTS, COLORS = "label PNGs", "instance-id PNGs", "colour masks"
_SAMPLE = 40  # maps that recognition decodes
_FOLDER = re.compile(r"instance|(?<![a-z])inst(?![a-z])|object|pedmask")
_SHARE = 0.9  # of maps, numbers or pixels that have to say `objects`
_WHITE = 255  # of the foreground in masks of two values
_VARIED = 3  # objects in the fullest map, at least
_OBJECT = "object"  # the class of objects without a name


@dataclass(frozen=True)
class Evidence:
    """What a sample of maps says: ``objects``, ``classes`` or ``open``, and why.

    Unless it is sure, a task that is asked for wins.
    """

    kind: str
    reason: str
    sure: bool = False


def find(tree: Tree, task: str | None) -> Found | None:
    """The folder as one of these formats; None if no label maps are to be found."""
    pairs = find_pairs(tree) if len(tree.pictures) > 1 else None
    if pairs is None:
        return None
    if not pairs.items:
        raise DataError(
            f"{tree.root} holds label maps (such as {pairs.lone[0]}) and pictures (such as "
            f"{pairs.bare[0]}), but no two have one name; a label map is called as its picture"
        )
    listed = find_classes(tree)
    file, classes = listed if listed else ("", None)
    colored = bool(classes) and any(c.color for c in classes or [])
    evidence = _evidence(tree, pairs.items, colored=colored, classes=classes)
    tasks = ("instance", "semantic") if evidence.kind == "objects" else ("semantic", "instance")
    possible = tasks[:1] if evidence.sure else tasks
    chosen = chosen_task(task, possible, f"{tree.root}: {evidence.reason}, which")
    reason = evidence.reason
    if chosen != tasks[0] and evidence.kind != "open":
        reason = f"the task {chosen!r} decides, although {reason}"
    items = pairs.items
    notes = []
    source: Any
    name = next((c.name for c in classes or [] if _is_object(c)), _OBJECT)
    if chosen == "instance":
        form, source = OBJECTS, InstanceIdSource(tree, name)
        means = f"each number a {name!r}" if name != _OBJECT else "each number an object"
    elif evidence.kind == "objects":
        form, source = OBJECTS, PaintedSource(InstanceIdSource(tree, name))
        means = f"all numbers one class, {name!r}, and 0 the background"
    else:
        form, source = COLORS if colored else CLASSES, LabelMapSource(tree, classes, file)
        means = f"classes from {file}" if classes else "each value a class"
    notes.append(
        f"{tree.root} was taken for {form}: {len(items)} pictures with a label map, {means}; "
        f"{reason}"
    )
    if pairs.bare:
        notes.append(f"pictures without a label map: {len(pairs.bare)}, not used")
    if pairs.lone:
        first = f"first {pairs.lone[0]}"
        notes.append(f"label maps without a picture: {len(pairs.lone)}, not used, {first}")
    return Found(form, chosen, items, source, notes)


def _is_object(entry: LabelClass) -> bool:
    return not entry.is_void and entry.name.lower() != BACKGROUND


def _evidence(
    tree: Tree, items: list[Item], *, colored: bool, classes: list[LabelClass] | None
) -> Evidence:
    """Whether the maps number objects or classes."""
    if colored:
        return Evidence("classes", "a file gives the colour of each class", sure=True)
    if classes and len([c for c in classes if _is_object(c)]) > 1:
        return Evidence("classes", "a file names several classes", sure=True)
    found = _FOLDER.search(" ".join(re.split(r"[/]", items[0].label.lower())[:-1]))
    if found:
        return Evidence("objects", f"their folder is named so ({found[0]!r})")
    counts, whole, numbers, dense, wide, binary = [], 0, 0, 0, False, True
    sample = spread([item.label for item in items], _SAMPLE)
    for path in sample:
        mode, values = read_values(tree.root / path)
        if values.ndim == 3:
            return Evidence("open", "the maps are colours, of classes or of objects")
        shown = np.unique(values)
        wide |= mode.startswith("I") and int(shown.max()) > 255
        binary &= set(shown.tolist()) <= {0, _WHITE}
        numbered = shown[shown > 0]
        counts.append(len(numbered))
        dense += bool(0 in shown and (numbered == np.arange(1, len(numbered) + 1)).all())
        whole += sum(_is_one_piece(values == number) for number in numbered[:50])
        numbers += min(len(numbered), 50)
    if wide:
        return Evidence("objects", "values above 255 are too many for classes")
    if binary and numbers:
        return Evidence("classes", "the maps hold 0 and 255 alone", sure=True)
    text = f"of {len(sample)} maps looked at, {dense} hold 0 and the numbers 1 to n"
    if dense < _SHARE * len(sample) or not numbers:
        return Evidence("classes", f"{text}, so that the values are classes")
    if whole < _SHARE * numbers:
        text += f", but {numbers - whole} of {numbers} numbers fall into several pieces"
        return Evidence("classes", f"{text}, so that the values are classes")
    if len(set(counts)) > 1 and max(counts) >= _VARIED:
        text += f" (n from {min(counts)} to {max(counts)}), each in one piece"
        return Evidence("objects", f"{text}, so that the values number objects")
    text += f" (n at most {max(counts)}), which may be classes or objects"
    return Evidence("open", f"{text}; the task decides, by default classes")


def _is_one_piece(mask: np.ndarray) -> bool:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pieces, _ = ndimage.label(crop, np.ones((3, 3)))
    return bool(np.bincount(pieces[crop]).max() >= _SHARE * crop.sum())


class InstanceIdSource(ObjectSource):
    """Maps with a number for each object, 0 for the background; all objects are of one class."""

    def __init__(self, tree: Tree, name: str) -> None:
        super().__init__(tree, [name])
        self.name = name

    def objects(self, item: Item) -> tuple[Size, list[Object]]:
        """As of :class:`ObjectSource`."""
        path = self.tree.root / item.label
        codes, size = read_codes(path), self.tree.size(item.image)
        if codes.shape != size:
            problem = f"is {codes.shape[1]}x{codes.shape[0]}, its picture {size[1]}x{size[0]}"
            raise failure("png-size", str(path), "", f"{problem} (width x height)")
        return size, [Object(self.name, codes == number) for number in np.unique(codes) if number]
