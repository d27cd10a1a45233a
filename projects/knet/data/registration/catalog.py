"""What every registration shares: the data sets' folder, name clashes, checks of paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = [
    "PathLike",
    "datasets_root",
    "is_registered",
    "optional_file",
    "optional_folder",
    "register_loader",
]

PathLike = Union[str, "os.PathLike[str]"]

# What each name was registered with, so that registering twice is told from a name clash.
_registered: dict[str, dict[str, Any]] = {}


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
    before = _registered.get(name)
    if before == arguments:
        return True
    if before is None:
        raise ValueError(f"the name {name!r} is taken by a data set registered elsewhere")
    changed = [
        f"{key}: {before.get(key)} → {value}"
        for key, value in arguments.items()
        if before.get(key) != value
    ]
    raise ValueError(f"{name!r} is registered already, with other arguments ({'; '.join(changed)})")


def register_loader(
    name: str, arguments: dict[str, Any], loader: Callable[[], list[dict[str, Any]]]
) -> None:
    """Adds a data set to Detectron2's catalog, remembering the arguments it was made from."""
    # A name that somebody took out of the catalog may leave metadata that would contradict ours.
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, loader)
    _registered[name] = arguments


def optional_folder(path: PathLike | None, what: str, name: str) -> str | None:
    """The path as a string, None for None; FileNotFoundError if it is no folder."""
    return _present(path, "folder", os.path.isdir, what, name)


def optional_file(path: PathLike | None, what: str, name: str) -> str | None:
    """The path as a string, None for None; FileNotFoundError if it is no file."""
    return _present(path, "file", os.path.isfile, what, name)


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
