"""Pascal VOC: JPEGImages, SegmentationClass, perhaps SegmentationObject, and lists of names."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from knet.data.defects import DataError
from knet.data.formats.class_list import LabelClass, find_classes
from knet.data.formats.found import Found
from knet.data.formats.label_values import LabelMapSource, read_codes
from knet.data.formats.maps import BACKGROUND
from knet.data.formats.segments import Segment, SegmentSource, for_task
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree, chosen_task
from knet.files import read_text
from knet.modeling.targets import IGNORE_LABEL

NAME = "Pascal VOC"
_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def find(tree: Tree, task: str | None) -> Found | None:
    """The folder as this format; None if it is not."""
    base = next((base for base in _bases(tree)), None)
    if base is None:
        return None
    pictures = {PurePosixPath(p).stem: p for p in tree.pictures if _in(p, base, "JPEGImages")}
    maps = {PurePosixPath(p).stem: p for p in tree.pictures if _in(p, base, "SegmentationClass")}
    objects = {p for p in tree.pictures if _in(p, base, "SegmentationObject")}
    parts = _parts(tree, base)
    stems = [stem for stem in pictures if stem in maps]
    if not stems:
        raise DataError(
            f"{tree.root} looks like {NAME}, but no picture of JPEGImages ({len(pictures)}) has a "
            f"PNG of its name in SegmentationClass ({len(maps)}); K-Net learns from masks"
        )
    items = [Item(pictures[stem], maps[stem], parts.get(stem, "")) for stem in sorted(stems)]
    possible = ("instance", "panoptic", "semantic") if objects else ("semantic",)
    chosen = chosen_task(task, possible, f"{tree.root}: {NAME}'s labels")
    listed = find_classes(tree)
    classes = listed[1] if listed else [LabelClass(n) for n in (BACKGROUND, *_CLASSES)]
    where = listed[0] if listed else "the 20 classes of Pascal VOC, as no file lists others"
    notes = [f"{tree.root} was taken for {NAME}: {len(items)} pictures with labels; {where}"]
    bare = len(pictures) - len(items)
    if bare:
        notes.append(f"pictures without a PNG in SegmentationClass: {bare}, not used")
    maps_source = LabelMapSource(tree, classes, listed[0] if listed else "")
    if not objects or chosen == "semantic":
        return Found(NAME, chosen, items, maps_source, notes)
    source = VocSource(maps_source, [c.name for c in classes if not c.is_void], objects)
    return Found(NAME, chosen, items, for_task(source, chosen), notes)


def _bases(tree: Tree) -> list[str]:
    """Folders that hold JPEGImages and SegmentationClass, with `/` at the end; the last year."""
    found = {p.partition("SegmentationClass/")[0] for p in tree.files if "SegmentationClass/" in p}
    return sorted(b for b in found if any(_in(p, b, "JPEGImages") for p in tree.files))[::-1]


def _in(path: str, base: str, folder: str) -> bool:
    return path.startswith(f"{base}{folder}/")


def _parts(tree: Tree, base: str) -> dict[str, str]:
    """stem → part, from ImageSets/Segmentation."""
    found = {}
    for part in ("test", "val", "train"):
        path = f"{base}ImageSets/Segmentation/{part}.txt"
        if path in tree:
            lines = read_text(tree.root / path).splitlines()
            found.update({line.split()[0]: part for line in lines if line.strip()})
    return found


class VocSource(SegmentSource):
    """Objects by number, each of the class that most of its pixels have; the rest is stuff."""

    def __init__(self, maps: LabelMapSource, names: list[str], objects: set[str]) -> None:
        super().__init__(maps.tree, names, [name for name in names if name != BACKGROUND])
        self.maps, self.numbers, self.notes = maps, objects, maps.notes

    def class_names(self, items: list[Item]) -> list[str]:
        """The listed classes; reads every map once, for values that no class has."""
        return self.maps.class_names(items)

    def segments(self, item: Item) -> tuple[np.ndarray, list[Segment]]:
        """As of :class:`SegmentSource`."""
        labels = self.maps.labels(item, self.names)
        path = item.label.replace("SegmentationClass/", "SegmentationObject/")
        if path not in self.numbers:
            raise DataError(
                f"{self.tree.root / item.label} has no counterpart in SegmentationObject; add it, "
                f"or take the semantic task"
            )
        numbers = read_codes(self.tree.root / path)
        if numbers.shape != labels.shape:
            raise DataError(f"{self.tree.root / path} has another size than its SegmentationClass")
        ids, segments = np.zeros(labels.shape, np.uint32), list[Segment]()
        stuff = [k for k, name in enumerate(self.names) if name not in self.things]
        for k in stuff:
            if (labels == k).any():
                segments.append(Segment(len(segments) + 1, self.names[k]))
                ids[labels == k] = len(segments)
        for number in np.unique(numbers):
            inside = (numbers == number) & ~np.isin(labels, [*stuff, IGNORE_LABEL])
            if number and inside.any():
                label = int(np.bincount(labels[inside]).argmax())
                segments.append(Segment(len(segments) + 1, self.names[label]))
                ids[inside] = len(segments)
        return ids, segments
