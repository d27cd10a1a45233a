"""Labels that are objects, one by one: written as COCO instances."""

from __future__ import annotations

import logging
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from knet.data.formats.split import Item
from knet.data.formats.tree import Tree
from knet.data.masks import encode_segmentation
from knet.errors import first_of
from knet.files import write_json

logger = logging.getLogger(__name__)

Size = tuple[int, int]  # (H, W) in pixels
Mask = list[list[float]] | dict[str, Any] | np.ndarray  # polygons, RLE or (H, W) bool


@dataclass(frozen=True)
class Object:
    """One object: its class, its mask, and whether it is a crowd."""

    name: str
    mask: Mask
    crowd: bool = False


class ObjectSource(ABC):
    """Base of formats that give objects.

    Args:
        tree: of the folder.
        names: the classes, None: those of the objects, by name.
    """

    def __init__(self, tree: Tree, names: Sequence[str] | None = None) -> None:
        self.tree, self.names = tree, names
        self.notes: list[str] = []

    @abstractmethod
    def objects(self, item: Item) -> tuple[Size, list[Object]]:
        """Size of a picture and its objects; DataError for labels that cannot be used."""

    def class_names(self, items: list[Item]) -> list[str]:
        """The classes, in the order of their indices."""
        if self.names is not None:
            return list(self.names)
        found = {o.name for item in each(items, "read") for o in self.objects(item)[1]}
        return sorted(found, key=_natural)

    def entry(self, name: str, items: list[Item], classes: list[str], folder: Path) -> dict:
        """Writes a COCO JSON of these pictures; the entry of the data set."""
        path = folder / f"{name}.json"
        content = self._coco(name, items, classes)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
        self.notes.append(f"{path}: written, {len(content['annotations'])} objects")
        return instance_entry(name, self.tree.root, path)

    def _coco(self, name: str, items: list[Item], classes: list[str]) -> dict[str, Any]:
        indices = {label: index for index, label in enumerate(classes, start=1)}
        images, annotations = [], list[dict[str, Any]]()
        bare = lost = 0
        for image_id, item in enumerate(each(items, name), start=1):
            size, objects = self.objects(item)
            images.append(
                {"id": image_id, "file_name": item.image, "height": size[0], "width": size[1]}
            )
            before = len(annotations)
            for found in objects:
                measured = measure(found.mask, size)
                if measured is None:
                    lost += 1
                    continue
                # ids from 1: COCO's evaluation takes 0 for "no match"
                own = {"id": len(annotations) + 1, "image_id": image_id}
                own.update(category_id=indices[found.name], iscrowd=int(found.crowd), **measured)
                annotations.append(own)
            bare += len(annotations) == before
        self.notes += object_notes(name, len(items), bare, lost)
        counts = Counter(annotation["category_id"] for annotation in annotations)
        self.notes += absent_notes(name, [c for c, k in indices.items() if not counts[k]])
        categories = [{"id": index, "name": label} for label, index in indices.items()]
        return {"images": images, "categories": categories, "annotations": annotations}


def instance_entry(name: str, image_root: Path, json_file: Path) -> dict[str, Any]:
    """The entry of COCO instances."""
    paths = {"IMAGE_ROOT": str(image_root), "JSON_FILE": str(json_file)}
    return {"NAME": name, "FORMAT": "coco_instances", **paths}


def measure(mask: Mask, size: Size) -> dict[str, Any] | None:
    """COCO's segmentation, area and bbox of a mask; None if it has no pixel."""
    rle = encode_segmentation(mask, size)
    area = int(mask_util.area(rle))
    if not area:
        return None
    segmentation: Any = mask
    if not isinstance(mask, list):
        counts = rle["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        segmentation = {"size": [int(side) for side in rle["size"]], "counts": text}
    box = [float(value) for value in mask_util.toBbox(rle)]
    return {"segmentation": segmentation, "area": area, "bbox": box}


def object_notes(name: str, images: int, bare: int, lost: int) -> list[str]:
    """Sentences on pictures without an object, and objects without a pixel."""
    notes = []
    if bare:
        text = f"{name}: pictures without an object: {bare} of {images}"
        notes.append(f"{text}; they show background")
    if lost:
        notes.append(f"{name}: objects without a pixel: {lost}, left out")
    return notes


def absent_notes(name: str, classes: Sequence[str]) -> list[str]:
    """A sentence on classes that no label shows."""
    if not classes:
        return []
    return [f"{name}: no label shows {first_of(classes)}; kept as {_classes(len(classes))}"]


def _classes(number: int) -> str:
    return "a class" if number == 1 else "classes"


def each(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, with a line in the log from time to time."""
    reported = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - reported > 5:
            reported = time.monotonic()
            logger.info("%s: %d of %d pictures", what, number, len(items))
        yield item


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders `class 2` before `class 10`."""
    words = re.split(r"(\d+)", name)
    return [(len(word) if word.isdecimal() else 0, word) for word in words]
