"""Labels that are a class for each pixel: label PNGs, written where the source's differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from knet.data.formats.objects import ObjectSource, absent_notes, each
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree, stem_of
from knet.data.masks import encode_segmentation
from knet.files import whole_folder, write_text
from knet.modeling.targets import IGNORE_LABEL

BACKGROUND = "background"
MOST_CLASSES = 255  # of label PNGs of 8 bit


class MapSource(ABC):
    """Base of formats that give a class for each pixel.

    Args:
        tree: of the folder.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.notes: list[str] = []

    @abstractmethod
    def class_names(self, items: list[Item]) -> list[str]:
        """The classes, in the order of their indices."""

    @abstractmethod
    def labels(self, item: Item, classes: list[str]) -> np.ndarray:
        """(H, W) uint8 indices into `classes`, 255: no label; DataError if they are not usable."""

    def is_usable(self, item: Item, classes: list[str]) -> bool:
        """Whether the item's label is such a PNG as it is."""
        return False

    def entry(self, name: str, items: list[Item], classes: list[str], folder: Path) -> dict:
        """Writes label PNGs, if the source's cannot be used, and the file of pairs."""
        folder.mkdir(parents=True, exist_ok=True)
        root, pairs = self.tree.root, {item.image: item.label for item in items}
        if not all(self.is_usable(item, classes) for item in items):
            root = folder / f"{name}_labels"
            pairs = {item.image: f"{stem_of(item.image)}.png" for item in items}
            self._write(root, pairs, items, classes)
        path = folder / f"{name}_pairs.txt"
        write_text(path, "".join(f"{image}\t{label}\n" for image, label in sorted(pairs.items())))
        return {
            "NAME": name,
            "FORMAT": "semantic",
            "IMAGE_ROOT": str(self.tree.root),
            "SEM_SEG_ROOT": str(root),
            "PAIRS_FILE": str(path),
            "CLASSES": list(classes),
        }

    def _write(
        self, root: Path, pairs: dict[str, str], items: list[Item], classes: list[str]
    ) -> None:
        shown: set[int] = set()
        with whole_folder(root) as unfinished:
            for item in each(items, root.name):
                labels = self.labels(item, classes)
                path = unfinished / pairs[item.image]
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(labels).save(path)
                shown.update(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())
        self.notes.append(f"{root}: {len(items)} label PNGs written")
        absent = [label for index, label in enumerate(classes) if index not in shown]
        self.notes += absent_notes(root.name.removesuffix("_labels"), absent)


class PaintedSource(MapSource):
    """Objects painted into one map over a background, small ones last.

    Args:
        source: of the objects. Crowds are a part of their class, too.
    """

    def __init__(self, source: ObjectSource) -> None:
        super().__init__(source.tree)
        self.source, self.notes = source, source.notes

    def class_names(self, items: list[Item]) -> list[str]:
        """The background, then those of the objects."""
        names = self.source.class_names(items)
        return [BACKGROUND, *(name for name in names if name != BACKGROUND)]

    def labels(self, item: Item, classes: list[str]) -> np.ndarray:
        """As of :class:`MapSource`."""
        size, objects = self.source.objects(item)
        return paint(size, [(o.mask, classes.index(o.name)) for o in objects])


def paint(size: tuple[int, int], masks: Sequence[tuple[Any, int]]) -> np.ndarray:
    """(H, W) uint8 of masks with their values over 0, the largest first."""
    labels = np.zeros(size, np.uint8)
    encoded = [(encode_segmentation(mask, size), value) for mask, value in masks]
    for rle, value in sorted(encoded, key=lambda pair: -int(mask_util.area(pair[0]))):
        labels[mask_util.decode(rle).astype(bool)] = value
    return labels


def lookup(values: np.ndarray, table: dict[int, int]) -> np.ndarray:
    """(H, W) uint8: what a table says of each value, 255 for those it does not hold."""
    found, rows = np.unique(values, return_inverse=True)
    indices = np.array([table.get(int(value), IGNORE_LABEL) for value in found], np.uint8)
    return indices[rows].reshape(values.shape)
