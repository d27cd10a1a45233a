"""Labels that are objects and regions at once: COCO panoptic, or one of the two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knet.data.formats.maps import MapSource
from knet.data.formats.objects import Object, ObjectSource, Size, absent_notes, each
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree, stem_of
from knet.data.panoptic_png import write_panoptic_png
from knet.files import whole_folder, write_json
from knet.modeling.targets import IGNORE_LABEL


@dataclass(frozen=True)
class Segment:
    """One segment: its id in the map, its class, and whether it is a crowd."""

    id: int
    name: str
    crowd: bool = False


class SegmentSource(ABC):
    """Base of formats that give panoptic labels.

    Args:
        tree: of the folder.
        names: the classes.
        things: those of them whose segments are objects.
    """

    def __init__(self, tree: Tree, names: Sequence[str], things: Sequence[str]) -> None:
        self.tree, self.names, self.things = tree, list(names), frozenset(things)
        self.notes: list[str] = []

    @abstractmethod
    def segments(self, item: Item) -> tuple[np.ndarray, list[Segment]]:
        """(H, W) ids of a picture, 0 for void, and its segments."""

    def class_names(self, items: list[Item]) -> list[str]:
        """The classes, in the order of the categories."""
        return self.names

    def entry(self, name: str, items: list[Item], classes: list[str], folder: Path) -> dict:
        """Writes panoptic PNGs and JSON; the entry of the data set."""
        path, root = folder / f"{name}.json", folder / f"{name}_panoptic"
        folder.mkdir(parents=True, exist_ok=True)
        images, annotations, shown = [], [], set[str]()
        with whole_folder(root) as unfinished:
            for image_id, item in enumerate(each(items, name), start=1):
                ids, segments = self.segments(item)
                height, width = ids.shape
                images.append(
                    {"id": image_id, "file_name": item.image, "height": height, "width": width}
                )
                file_name = f"{stem_of(item.image)}.png"
                (unfinished / file_name).parent.mkdir(parents=True, exist_ok=True)
                write_panoptic_png(str(unfinished / file_name), ids)
                infos = [_info(ids == s.id, s, classes.index(s.name) + 1) for s in segments]
                own = {"image_id": image_id, "file_name": file_name, "segments_info": infos}
                annotations.append(own)
                shown.update(s.name for s in segments)
        categories = [
            {"id": index, "name": label, "isthing": int(label in self.things)}
            for index, label in enumerate(classes, start=1)
        ]
        content = {"images": images, "categories": categories, "annotations": annotations}
        write_json(path, content)
        self.notes.append(f"{path}: written, with {len(items)} PNGs in {root}")
        self.notes += absent_notes(name, [label for label in classes if label not in shown])
        return {
            "NAME": name,
            "FORMAT": "coco_panoptic",
            "IMAGE_ROOT": str(self.tree.root),
            "PANOPTIC_ROOT": str(root),
            "PANOPTIC_JSON": str(path),
        }


def _info(mask: np.ndarray, segment: Segment, category: int) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    return {
        "id": segment.id,
        "category_id": category,
        "iscrowd": int(segment.crowd),
        "area": int(mask.sum()),
        "bbox": box,
    }


class ThingsOf(ObjectSource):
    """The objects of panoptic labels."""

    def __init__(self, source: SegmentSource) -> None:
        super().__init__(source.tree)
        self.source, self.notes = source, source.notes

    def class_names(self, items: list[Item]) -> list[str]:
        """The classes of objects."""
        return [name for name in self.source.class_names(items) if name in self.source.things]

    def objects(self, item: Item) -> tuple[Size, list[Object]]:
        """As of :class:`ObjectSource`."""
        ids, segments = self.source.segments(item)
        things = [s for s in segments if s.name in self.source.things]
        objects = [Object(s.name, ids == s.id, s.crowd) for s in things]
        return (ids.shape[0], ids.shape[1]), objects


class ClassesOf(MapSource):
    """The classes of panoptic labels, pixel by pixel."""

    def __init__(self, source: SegmentSource) -> None:
        super().__init__(source.tree)
        self.source, self.notes = source, source.notes

    def class_names(self, items: list[Item]) -> list[str]:
        """All classes."""
        return self.source.class_names(items)

    def labels(self, item: Item, classes: list[str]) -> np.ndarray:
        """As of :class:`MapSource`."""
        ids, segments = self.source.segments(item)
        labels = np.full(ids.shape, IGNORE_LABEL, np.uint8)
        for segment in segments:
            labels[ids == segment.id] = classes.index(segment.name)
        return labels


def for_task(source: SegmentSource, task: str) -> SegmentSource | ThingsOf | ClassesOf:
    """Panoptic labels as a task takes them."""
    return {"panoptic": lambda s: s, "instance": ThingsOf, "semantic": ClassesOf}[task](source)
