"""Cityscapes' tree: leftImg8bit and gtFine, with polygons or PNGs, 19 classes of which 8 things."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from knet.data.coco_file import load_json
from knet.data.defects import DataError, failure
from knet.data.formats.class_list import LabelClass
from knet.data.formats.found import Found
from knet.data.formats.label_values import LabelMapSource, read_codes
from knet.data.formats.segments import Segment, SegmentSource, for_task
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree, chosen_task, part_of

NAME = "Cityscapes"
# id → name; of cityscapesScripts' helpers/labels.py
_LABELS = {
    **{0: "unlabeled", 1: "ego vehicle", 2: "rectification border", 3: "out of roi", 4: "static"},
    **{5: "dynamic", 6: "ground", 7: "road", 8: "sidewalk", 9: "parking", 10: "rail track"},
    **{11: "building", 12: "wall", 13: "fence", 14: "guard rail", 15: "bridge", 16: "tunnel"},
    **{17: "pole", 18: "polegroup", 19: "traffic light", 20: "traffic sign", 21: "vegetation"},
    **{22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus"},
    **{29: "caravan", 30: "trailer", 31: "train", 32: "motorcycle", 33: "bicycle"},
}
_THINGS = (24, 25, 26, 27, 28, 31, 32, 33)
_SCORED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, *_THINGS)
_IDS = {name: label for label, name in _LABELS.items()} | {"license plate": 0}
_GROUP = "group"
_DIVISOR = 1000  # of instance ids: class, then number of the object
_IMAGE = "_leftImg8bit"
# what a file's name ends in, and for which tasks it does, the best first
_FILES = {
    "panoptic": ("instanceIds.png", "polygons.json"),
    "semantic": ("labelTrainIds.png", "labelIds.png", "instanceIds.png", "polygons.json"),
}


def find(tree: Tree, task: str | None) -> Found | None:
    """The folder as this format; None if it is not."""
    pictures = {
        _place(path, "leftImg8bit/", _IMAGE): path for path in tree.pictures if _IMAGE in path
    }
    truth = "gtFine" if any("gtFine/" in path for path in tree.files) else "gtCoarse"
    labels: dict[str, dict[str, str]] = {}  # picture → end of the name → file
    for path in tree.ending(".png", ".json"):
        if f"{truth}/" in path and f"_{truth}_" in path:
            end = path.rpartition(f"_{truth}_")[2]
            labels.setdefault(_place(path, f"{truth}/", f"_{truth}_"), {})[end] = path
    if not pictures or not labels:
        return None
    own = [name for name in pictures if name in labels]
    if not own:
        raise DataError(f"{tree.root} looks like {NAME}, but no picture has a file in {truth}")
    ends = set.intersection(*(set(labels[name]) for name in own))
    possible = [t for t in ("panoptic", "semantic") if ends.intersection(_FILES[t])]
    if not possible:
        raise DataError(
            f"{tree.root} looks like {NAME}, but not every picture has one of "
            f"{', '.join(_FILES['semantic'])} in {truth}"
        )
    tasks = ("panoptic", "instance", "semantic") if "panoptic" in possible else ("semantic",)
    chosen = chosen_task(task, tasks, f"{tree.root}: {NAME}'s labels")
    end = next(e for e in _FILES["semantic" if chosen == "semantic" else "panoptic"] if e in ends)
    items = [Item(pictures[name], labels[name][end], part_of(name)) for name in sorted(own)]
    source: Any = CityscapesSource(tree)
    if end.startswith("label"):
        source = LabelMapSource(tree, _classes(train_ids=end == "labelTrainIds.png"), NAME)
    else:
        source = for_task(source, chosen)
    notes = [f"{tree.root} was taken for {NAME}: {len(items)} pictures with *_{end}, 19 classes"]
    bare = len(pictures) - len(own)
    if bare:
        notes.append(f"pictures without a file in {truth}: {bare}, not used")
    return Found(NAME, chosen, items, source, notes)


def _place(path: str, folder: str, mark: str) -> str:
    """What picture and labels have in common: split, city and frame."""
    return path.rpartition(folder)[2].rpartition(mark)[0]


def _classes(*, train_ids: bool) -> list[LabelClass]:
    if train_ids:
        return [LabelClass(_LABELS[label], value) for value, label in enumerate(_SCORED_SORTED)]
    void = [LabelClass("void", label) for label in _LABELS if label not in _SCORED]
    return [LabelClass(_LABELS[label], label) for label in _SCORED_SORTED] + void


_SCORED_SORTED = tuple(sorted(_SCORED))


class CityscapesSource(SegmentSource):
    """Segments from instance ids, or from polygons painted in their order."""

    def __init__(self, tree: Tree) -> None:
        names = [_LABELS[label] for label in _SCORED_SORTED]
        super().__init__(tree, names, [_LABELS[label] for label in _THINGS])

    def segments(self, item: Item) -> tuple[np.ndarray, list[Segment]]:
        """As of :class:`SegmentSource`; things without a number are crowds."""
        path = self.tree.root / item.label
        size = self.tree.size(item.image)
        codes = _painted(str(path), size) if path.suffix == ".json" else read_codes(path)
        if codes.shape != size:
            raise _size_failure(str(path), codes.shape, size)
        ids, segments = np.zeros(size, np.uint32), list[Segment]()
        for code in np.unique(codes).tolist():
            label = code // _DIVISOR if code >= _DIVISOR else code
            if label in _SCORED:
                crowd = label in _THINGS and code < _DIVISOR
                segments.append(Segment(len(segments) + 1, _LABELS[label], crowd))
                ids[codes == code] = len(segments)
        return ids, segments


def _size_failure(path: str, found: tuple[Any, ...], size: tuple[int, int]) -> DataError:
    problem = f"is of {found[1]}x{found[0]} pixels, its picture of {size[1]}x{size[0]}"
    return failure("png-size", path, "", problem)


def _painted(path: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W) instance ids of a file of polygons; `size` is that of its picture."""
    content = load_json(path)
    stated = content.get("imgHeight"), content.get("imgWidth")
    if stated != size:
        raise _size_failure(path, stated, size)
    canvas, numbers = Image.new("I", size[::-1]), dict.fromkeys(_THINGS, 0)
    try:
        objects = [(o["label"], o["polygon"]) for o in content["objects"] if not o.get("deleted")]
        outlines = [(str(name), [(float(x), float(y)) for x, y in p]) for name, p in objects]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"is no file of Cityscapes' polygons ({type(error).__name__}: {error})"
        raise failure("json-invalid", path, "", problem) from error
    for name, outline in outlines:
        group = name not in _IDS and name.endswith(_GROUP)
        label = _IDS.get(name.removesuffix(_GROUP) if group else name)
        if label is None:
            mend = "Cityscapes' own are meant; other labels are read from label PNGs"
            raise failure("unknown-category", path, "", f"unknown label {name!r}", mend=mend)
        code = label
        if label in numbers and not group:
            code = label * _DIVISOR + numbers[label]
            numbers[label] += 1
        if len(outline) > 1:
            ImageDraw.Draw(canvas).polygon(outline, fill=code)
    return np.array(canvas)
