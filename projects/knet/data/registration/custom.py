"""Registers the data sets that a config describes under ``DATASETS.CUSTOM``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from knet.data.on_error import check_on_error
from knet.data.registration.catalog import datasets_root
from knet.data.registration.register import register_coco_instances, register_coco_panoptic
from knet.data.registration.register_semantic import register_sem_seg

__all__ = ["register_custom"]


@dataclass(frozen=True)
class _Format:
    """How one format is registered, and the keys that it takes besides NAME and FORMAT."""

    register: Callable[..., None]
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


_FORMATS = {
    "coco_panoptic": _Format(
        register_coco_panoptic,
        ("IMAGE_ROOT", "PANOPTIC_ROOT", "PANOPTIC_JSON"),
        ("INSTANCES_JSON", "SEM_SEG_ROOT"),
    ),
    "coco_instances": _Format(register_coco_instances, ("IMAGE_ROOT", "JSON_FILE")),
    "semantic": _Format(
        register_sem_seg,
        ("IMAGE_ROOT", "SEM_SEG_ROOT", "CLASSES"),
        ("COLORS", "IGNORE_LABEL", "MAX_IMAGES"),
    ),
}
_PATHS = {
    "IMAGE_ROOT",
    "INSTANCES_JSON",
    "JSON_FILE",
    "PANOPTIC_JSON",
    "PANOPTIC_ROOT",
    "SEM_SEG_ROOT",
}
_NUMBERS = {"IGNORE_LABEL", "MAX_IMAGES"}


def register_custom(cfg: CfgNode) -> None:
    """Registers each data set of ``cfg.DATASETS.CUSTOM``; registering it again changes nothing.

    An entry is a dict with ``NAME``, ``FORMAT`` (``coco_panoptic``, ``coco_instances`` or
    ``semantic``) and the arguments of :func:`register_coco_panoptic`,
    :func:`register_coco_instances` or :func:`register_sem_seg` in upper case. Relative paths
    count from :func:`datasets_root`.

    ``cfg.DATASETS.ON_ERROR`` says what happens to images whose annotations have an error. Data
    sets of ``cfg.DATASETS.TEST`` always ``raise``: an evaluation must not lose images.

    Raises:
        FileNotFoundError: naming what is missing.
        DataError: for an annotation file that cannot be used.
        ValueError: for another policy than ``raise`` or ``skip``; naming the entry, for an unknown
            or missing key, a format that does not exist, a name that comes twice, or data that
            cannot be registered.
    """
    on_error = check_on_error(cfg.DATASETS.ON_ERROR, "DATASETS.ON_ERROR")
    names: set[str] = set()
    for index, entry in enumerate(cfg.DATASETS.CUSTOM):
        where = f"DATASETS.CUSTOM[{index}]"
        chosen = _check(entry, where)
        if entry["NAME"] in names:
            raise ValueError(f"{where}: the name {entry['NAME']!r} comes twice in DATASETS.CUSTOM")
        names.add(entry["NAME"])
        arguments = {
            key.lower(): _value(key, entry[key], where)
            for key in (*chosen.needed, *chosen.optional)
            if key in entry
        }
        policy = "raise" if entry["NAME"] in cfg.DATASETS.TEST else on_error
        chosen.register(entry["NAME"], on_error=policy, **arguments)


def _check(entry: Any, where: str) -> _Format:
    """The format of an entry whose keys are right."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a dict with NAME and FORMAT, not {entry!r}")
    name, form = entry.get("NAME"), entry.get("FORMAT")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: NAME must be a name for DATASETS.TRAIN and TEST, not {name!r}")
    if not isinstance(form, str) or form not in _FORMATS:
        raise ValueError(f"{where} ({name}): FORMAT is {form!r}; known are {', '.join(_FORMATS)}")
    chosen = _FORMATS[form]
    known = ("NAME", "FORMAT", *chosen.needed, *chosen.optional)
    unknown = [str(key) for key in entry if key not in known]
    if unknown:
        raise ValueError(
            f"{where} ({name}): unknown key {unknown[0]!r}; {form} takes {', '.join(known)}"
        )
    missing = [key for key in chosen.needed if key not in entry]
    if missing:
        raise ValueError(f"{where} ({name}): {form} needs {', '.join(missing)} too")
    return chosen


def _value(key: str, value: Any, where: str) -> Any:
    """The argument that a config value means: paths from the data sets' folder on."""
    if key in _PATHS or (key == "CLASSES" and isinstance(value, str)):
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: {key} must be a path, not {value!r}")
        return str(datasets_root() / os.path.expanduser(value))
    if key in _NUMBERS and (not isinstance(value, int) or isinstance(value, bool)):
        raise ValueError(f"{where}: {key} must be a whole number, not {value!r}")
    if key in ("CLASSES", "COLORS") and not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: {key} must be a list, not {value!r}")
    return value
