"""A recognised folder, and the data sets that are made of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from knet.data.defects import DataError
from knet.data.formats.split import Item, split_items
from knet.data.formats.tree import Tree
from knet.errors import UserError, first_of

Entry = dict[str, Any]  # of DATASETS.CUSTOM


class Source(Protocol):
    """Reads the labels of one format."""

    tree: Tree
    notes: list[str]  # on what was read; grows while it is

    def class_names(self, items: list[Item]) -> list[str]:
        """The classes, in the order of their indices, of these pictures at least."""

    def entry(self, name: str, items: list[Item], classes: list[str], folder: Path) -> Entry:
        """The entry of a data set; writes below `folder` what the source lacks."""


@dataclass(frozen=True)
class Prepared:
    """Data sets that can be registered.

    Attributes:
        train, val: entries of ``DATASETS.CUSTOM``.
        task: ``instance``, ``panoptic`` or ``semantic``.
        classes: names, in the order of their indices; of panoptic data in that of the categories.
        notes: sentences on what was taken, assumed and left out.
    """

    train: Entry
    val: Entry
    task: str
    classes: list[str]
    notes: list[str]


@dataclass
class Found:
    """What a folder was taken for.

    Attributes:
        format: e.g. ``YOLO segmentation``.
        task: ``instance``, ``panoptic`` or ``semantic``.
        items: its pictures with labels.
        source: reads the labels.
        notes: sentences on what it was taken for, and why.
        val: another folder for validation.
    """

    format: str
    task: str
    items: list[Item]
    source: Source
    notes: list[str] = field(default_factory=list)
    val: Found | None = None

    @property
    def root(self) -> Path:
        """The folder."""
        return self.source.tree.root

    @property
    def num_images(self) -> int:
        """The number of its pictures, of all parts and of the folder for validation."""
        return len(self.items) + (len(self.val.items) if self.val else 0)

    def require_outside(self, output: str | os.PathLike[str]) -> None:
        """Refuse a folder within the data, whose files would be taken for data the next time.

        Raises:
            UserError: naming it and the data.
        """
        place = Path(output).resolve()
        for root in (found.root.resolve() for found in (self, self.val) if found):
            if root == place or root in place.parents:
                raise UserError(f"{output} lies in the data, {root}: name another --output folder")

    def prepare(
        self, output: str | os.PathLike[str], val_share: float = 0.2, seed: int = 1
    ) -> Prepared:
        """Makes two data sets of the folder.

        Pictures are never copied. Annotations that cannot be used as they are come to
        ``output``, each file and folder whole or not at all, with the same bytes every time.

        Args:
            output: folder outside of the data; made if missing.
            val_share: of the pictures, for validation, where the folder names no part for it.
            seed: of that choice.

        Raises:
            UserError: `output` lies in the data.
            DataError: naming file and mend, for labels that cannot be used.
            ValueError: ``val_share`` is not between 0 and 1.
        """
        if not 0 < val_share < 1:
            raise ValueError(f"val_share is {val_share}; it must be between 0 and 1")
        self.require_outside(output)
        notes = list(self.notes)
        source, val_source = self.source, self.source
        if self.val is None:
            train, val, text = split_items(self.items, val_share, seed)
            classes = source.class_names(train + val)
        else:
            val_source, train, val = self.val.source, self._own(), self.val._own("val")
            text = f"{len(train)} pictures to train, {len(val)} of {self.val.root} to validate"
            classes = source.class_names(train)
            notes += _compare(classes, val_source.class_names(val), self.root, self.val.root)
        notes.append(text)
        folder = Path(os.path.abspath(output))
        stem = re.sub(r"[^a-z0-9]+", "_", self.root.name.lower()).strip("_") or "data"
        train_entry = source.entry(f"{stem}_train", train, classes, folder)
        val_entry = val_source.entry(f"{stem}_val", val, classes, folder)
        notes += source.notes
        notes += val_source.notes if val_source is not source else []
        return Prepared(train_entry, val_entry, self.task, classes, list(dict.fromkeys(notes)))

    def _own(self, *parts: str) -> list[Item]:
        """Of a folder that is used as one part: what it names so, or all."""
        for part in parts or ("train",):
            found = [item for item in self.items if item.part == part]
            if found:
                return found
        return self.items


def _compare(classes: list[str], others: list[str], root: Path, other_root: Path) -> list[str]:
    unknown = [name for name in others if name not in classes]
    if unknown:
        raise DataError(
            f"{other_root} has other classes than {root}: {first_of(unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} not among {first_of(classes, 10)}; give both "
            f"folders the same classes"
        )
    absent = [name for name in classes if name not in others]
    return [f"{other_root} does not know the class {first_of(absent)}"] if absent else []
