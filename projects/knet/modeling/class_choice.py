"""The classes that MODEL.KNET.TEST.CLASSES asks for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from knet.modeling.classes import ClassIds, class_names

_SHOWN = 8


def chosen_classes(cfg: CfgNode, ids: ClassIds) -> tuple[int, ...] | None:
    """`find_classes` of a config, with the names of its first data set."""
    datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    names = class_names(MetadataCatalog.get(datasets[0]), ids) if datasets else None
    return find_classes(cfg.MODEL.KNET.TEST.CLASSES, ids, names)


def find_classes(
    wanted: Sequence[Any], ids: ClassIds, names: Sequence[str] | None
) -> tuple[int, ...] | None:
    """Classes in [0, T + S) by their names or labels; None, for all, if none is wanted.

    Args:
        wanted: names, or labels as results have them. A name that a thing and a stuff class share
            stands for both.
        ids: the labels of the classes.
        names: of all classes, things first; None if they are not known.

    Raises:
        ValueError: a class that is not there, with names that are near.
    """
    labels = [*ids.things, *ids.stuff]
    found: set[int] = set()
    for entry in wanted:
        if isinstance(entry, str):
            rows = {row for row, name in enumerate(names or ()) if name == entry}
        else:
            rows = {row for row, label in enumerate(labels) if label == entry}
        if not rows or isinstance(entry, bool):
            raise ValueError(f"MODEL.KNET.TEST.CLASSES: {_why_unknown(entry, labels, names)}")
        found |= rows
    return tuple(sorted(found)) or None


def _why_unknown(entry: Any, labels: Sequence[int], names: Sequence[str] | None) -> str:
    if not isinstance(entry, str):
        return f"no class with label {entry!r}; labels are {min(labels)} to {max(labels)}"
    if names is None:
        return f"no data set (DATASETS) tells the label of {entry!r}: give labels, not names"
    by_lower = {name.lower(): name for name in names}
    near = [by_lower[name] for name in difflib.get_close_matches(entry.lower(), by_lower)]
    near += [name for name in names if entry.lower() in name.lower() and name not in near]
    if near:
        return f"no class {entry!r}; did you mean {', '.join(map(repr, near[:_SHOWN]))}?"
    rest = " …" if len(names) > _SHOWN else ""
    listed = ", ".join(map(repr, names[:_SHOWN]))
    return f"no class {entry!r}; the {len(names)} classes are {listed}{rest}"
