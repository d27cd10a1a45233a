"""Which labels of a data set are K-Net's classes, how results name them, which a config chooses."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from knet.errors import first_of

__all__ = ["ClassIds"]

_SHOWN = 10  # classes that a message names


@dataclass(frozen=True)
class ClassIds:
    """Contiguous data set ids: K-Net's class c < T is `things[c]`, class T + j is `stuff[j]`.

    A semantic model has no things; `stuff` are all its classes.
    """

    things: tuple[int, ...]
    stuff: tuple[int, ...]


def class_ids_from_config(cfg: CfgNode, *, semantic: bool = False) -> ClassIds:
    """Read the classes off the metadata of the config's data sets, which must agree.

    Args:
        cfg: the config.
        semantic: things and stuff alike are semantic classes.

    Raises:
        ValueError: the data sets disagree, the config gives another number of classes, or there
            is neither data set nor number.
    """
    ids = _class_ids_from_config(cfg, _semantic_ids if semantic else _class_ids)
    if semantic and (ids.things or len(ids.stuff) < 2):
        raise ValueError(
            "a semantic model has no thing classes and at least two others (one foreground class "
            "needs a background class beside it): MODEL.KNET.NUM_THING_CLASSES is "
            f"{len(ids.things)} and NUM_STUFF_CLASSES {len(ids.stuff)}"
        )
    return ids


def class_names(metadata: Metadata, ids: ClassIds) -> tuple[str, ...] | None:
    """Names of the labels `ids`, things first; None if the metadata lack some."""
    things, stuff = metadata.get("thing_classes", ()), metadata.get("stuff_classes", ())
    if max(ids.things, default=-1) >= len(things) or max(ids.stuff, default=-1) >= len(stuff):
        return None
    return (*(things[i] for i in ids.things), *(stuff[i] for i in ids.stuff))


def _class_ids_from_config(cfg: CfgNode, class_ids: Callable[[str], ClassIds]) -> ClassIds:
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    given = (cfg.MODEL.KNET.NUM_THING_CLASSES, cfg.MODEL.KNET.NUM_STUFF_CLASSES)
    if not names:
        if min(given) < 0:
            raise ValueError(
                "without a data set, MODEL.KNET.NUM_THING_CLASSES and NUM_STUFF_CLASSES "
                f"must be given; they are {given[0]} and {given[1]}"
            )
        things = tuple(sorted(cfg.MODEL.KNET.THING_IDS)) or tuple(range(given[0]))
        if len(set(things)) != given[0] or (
            things and not 0 <= things[0] <= things[-1] < sum(given)
        ):
            raise ValueError(
                f"MODEL.KNET.THING_IDS {things} must be {given[0]} labels (NUM_THING_CLASSES) "
                f"below {sum(given)}"
            )
        return ClassIds(things, tuple(i for i in range(sum(given)) if i not in set(things)))
    ids = class_ids(names[0])
    things, stuff = ids.things, ids.stuff
    for other in names[1:]:
        theirs = class_ids(other)
        # a data set without stuff may still score the things of a panoptic model
        if theirs.things != things or (theirs.stuff and theirs.stuff != stuff):
            raise ValueError(
                f"the data sets in DATASETS have other classes: {_described(names[0], ids)}, but "
                f"{_described(other, theirs)}: give all of them the same classes, in the same order"
            )
        _require_same_names(names[0], other, theirs)
    for kind, wanted, found in zip(("THING", "STUFF"), given, (things, stuff)):
        if wanted not in (-1, len(found)):
            raise ValueError(
                f"MODEL.KNET.NUM_{kind}_CLASSES is {wanted}, but {_described(names[0], ids)}: set "
                f"the key to {len(found)}, or to -1 to follow the data"
            )
    return ids


def _require_same_names(first: str, other: str, ids: ClassIds) -> None:
    """Raise ValueError if a label has two names, as far as names are known."""
    for kind, labels in (("thing", ids.things), ("stuff", ids.stuff)):
        ours, theirs = (_metadata(name).get(f"{kind}_classes") or () for name in (first, other))
        for label in labels:
            if label < min(len(ours), len(theirs)) and ours[label] != theirs[label]:
                raise ValueError(
                    "the data sets in DATASETS have other classes: "
                    f"{_class(first, kind, label)} of {_source(first)} stands where "
                    f"{_class(other, kind, label)} of {_source(other)} does (label {label} of the "
                    "model): give both the same classes, in the same order"
                )


def _described(name: str, ids: ClassIds) -> str:
    """The file of a data set, with the ids and names of its classes there."""
    kinds = []
    for kind, labels in (("thing", ids.things), ("stuff", ids.stuff)):
        classes = first_of([_class(name, kind, label) for label in labels], _SHOWN)
        kinds.append(f"{len(labels)} {kind} classes" + (f" ({classes})" if labels else ""))
    return f"{_source(name)} has {' and '.join(kinds)}"


def _source(name: str) -> str:
    metadata = _metadata(name)
    files = [metadata.get(key) for key in ("panoptic_json", "json_file", "sem_seg_root")]
    file = next((str(file) for file in files if file), "")
    return f"{name!r}" + (f" ({file})" if file else "")


def _class(name: str, kind: str, label: int) -> str:
    """A class by its id in the annotations, where they have ids, and its name."""
    metadata = _metadata(name)
    names = metadata.get(f"{kind}_classes") or ()
    ids = metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}
    number = next((key for key, value in ids.items() if value == label), label)
    what = "id" if ids else "label"
    return f"{what} {number}" + (f" {names[label]!r}" if label < len(names) else "")


def _metadata(name: str) -> Metadata:
    if name not in DatasetCatalog:
        raise ValueError(
            f"the data set {name!r} (DATASETS) is not registered: register it before the "
            "model is built"
        )
    return MetadataCatalog.get(name)


def _semantic_ids(name: str) -> ClassIds:
    names = _metadata(name).get("stuff_classes")
    if not names:
        raise ValueError(
            f"the data set {name!r} has no semantic classes (its metadata has no stuff_classes): "
            "take a semantic or panoptic data set, or MODEL.KNET.KERNEL_HEAD learned"
        )
    return ClassIds((), tuple(range(len(names))))


def _class_ids(name: str) -> ClassIds:
    metadata = _metadata(name)
    things = _ids(metadata, "thing_dataset_id_to_contiguous_id", "thing_classes")
    if not (metadata.get("panoptic_json") or metadata.get("panoptic_root")):
        return ClassIds(things, ())  # instance annotations only
    if "things" in metadata.get("stuff_classes", ())[:1]:
        raise ValueError(
            f"the data set {name!r} counts all things as one stuff class; name the one without "
            "'_separated', in which things and stuff share their ids"
        )
    stuff = _ids(metadata, "stuff_dataset_id_to_contiguous_id", "stuff_classes")
    return ClassIds(things, tuple(i for i in stuff if i not in set(things)))


def _ids(metadata: Metadata, mapping: str, names: str) -> tuple[int, ...]:
    if metadata.get(mapping):
        return tuple(sorted(set(metadata.get(mapping).values())))
    # COCO-style data sets get their id map only once their JSON is read
    return tuple(range(len(metadata.get(names, ()))))


@dataclass(frozen=True)
class Category:
    """One class.

    Attributes:
        label: as results have it (`pred_classes`, channels of `sem_seg`).
        id: of the data set's annotations.
        name: of the class.
        is_thing: a thing, or stuff; semantic models know stuff only.
    """

    label: int
    id: int
    name: str
    is_thing: bool


def categories_of(metadata: Metadata, ids: ClassIds) -> list[Category]:
    """Things, then stuff, each by ascending label.

    Args:
        metadata: a data set's. Where it has no ``…_dataset_id_to_contiguous_id`` (semantic data
            have none), labels are ids.
        ids: the labels of the model's classes.

    Raises:
        ValueError: if the metadata lack names.
    """
    names = class_names(metadata, ids)
    if names is None:
        raise ValueError(
            f"the metadata of {metadata.get('name')!r} name fewer classes than the model has: "
            f"{len(ids.things)} things and {len(ids.stuff)} others"
        )
    found = []
    for kind, labels in (("thing", ids.things), ("stuff", ids.stuff)):
        mapping = metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}
        of_label = {label: category_id for category_id, label in mapping.items()}
        found += [(label, int(of_label.get(label, label)), kind == "thing") for label in labels]
    return [Category(label, key, name, thing) for (label, key, thing), name in zip(found, names)]


def category_records(categories: Sequence[Category]) -> list[dict[str, Any]]:
    """COCO's records of classes, each with its ``label``, as files of results hold them."""
    return [
        {"id": c.id, "name": c.name, "isthing": int(c.is_thing), "label": c.label}
        for c in categories
    ]


def require_classes(
    path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]], ours: Sequence[Category]
) -> None:
    """Raise ValueError if results of a file have other classes than a data set."""
    theirs, expected = (
        {repr((c.get("id"), c.get("name"), c.get("label"))): str(c.get("name")) for c in part}
        for part in (records, category_records(ours))
    )
    if theirs.keys() != expected.keys():
        other = sorted({**theirs, **expected}[key] for key in theirs.keys() ^ expected.keys())
        raise ValueError(f"{path} has other classes than the data set: {first_of(other)}")


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
