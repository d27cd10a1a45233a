"""What every registration shares: the data sets' folder, name clashes, checks of paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Union

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = [
    "PathLike",
    "common_ignore_label",
    "datasets_root",
    "is_registered",
    "optional_file",
    "optional_folder",
    "register_loader",
]

PathLike = Union[str, "os.PathLike[str]"]

# What each name was registered with, so that registering twice is told from a name clash.
Loader = Callable[[], list[dict[str, Any]]]

# arguments, and the loader they led to: others may remove a name and register their own under it
_registered: dict[str, tuple[dict[str, Any], Loader]] = {}


def datasets_root() -> Path:
    """The folder of all data sets: ``$DETECTRON2_DATASETS``, by default ``datasets``."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def is_registered(name: str, arguments: dict[str, Any]) -> bool:
    """Whether the data set of this name was registered with these very arguments.

    Raises:
        ValueError: if another data set has the name.
    """
    if name not in DatasetCatalog:
        return False
    before, loader = _registered.get(name, ({}, None))
    if loader is not DatasetCatalog[name]:
        raise ValueError(f"the name {name!r} is taken by a data set registered elsewhere")
    if before == arguments:
        return True
    changed = [
        f"{key}: {before.get(key)} → {value}"
        for key, value in arguments.items()
        if before.get(key) != value
    ]
    raise ValueError(f"{name!r} is registered already, with other arguments ({'; '.join(changed)})")


def register_loader(name: str, arguments: dict[str, Any], loader: Loader) -> None:
    """Adds a data set to Detectron2's catalog, remembering the arguments it was made from."""
    # A name that somebody took out of the catalog may leave metadata that would contradict ours.
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, loader)
    _registered[name] = (arguments, loader)


def optional_folder(path: PathLike | None, what: str, name: str) -> str | None:
    """The path as a string, None for None; FileNotFoundError if it is no folder."""
    return _present(path, "folder", os.path.isdir, what, name)


def optional_file(path: PathLike | None, what: str, name: str) -> str | None:
    """The path as a string, None for None; FileNotFoundError if it is no file."""
    return _present(path, "file", os.path.isfile, what, name)


def common_ignore_label(names: Iterable[str], default: int) -> int:
    """The value of pixels without a label in all label PNGs of several data sets.

    Args:
        names: of registered data sets; those without label PNGs do not count.
        default: of data sets that say nothing of it.

    Raises:
        ValueError: if two data sets differ.
    """
    found: dict[int, str] = {}
    for name in names:
        meta = MetadataCatalog.get(name)
        if meta.get("ignore_label") is not None or meta.get("stuff_classes"):
            value = meta.get("ignore_label")
            found.setdefault(default if value is None else value, name)
    if len(found) > 1:
        text = ", ".join(f"{value} in {name!r}" for value, name in found.items())
        raise ValueError(
            f"the data sets ignore different labels ({text}), but one training has one value: "
            f"convert the labels of one (`python datasets/prepare_label_pngs.py IN OUT --ignore …`)"
        )
    return next(iter(found), default)


def _present(
    path: PathLike | None, kind: str, is_there: Callable[[PathLike], bool], what: str, name: str
) -> str | None:
    if path is None:
        return None
    if not is_there(path):
        raise FileNotFoundError(
            f"data set {name!r}: no {kind} {os.fspath(path)} for {what}; correct the path, or put "
            f"the data there ($DETECTRON2_DATASETS names the folder of all data sets)"
        )
    return os.fspath(path)
