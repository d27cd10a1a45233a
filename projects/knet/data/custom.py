"""Registers what a config names: data sets of one's own under ``DATASETS.CUSTOM``, and built-in.

Built-in are those that need no preparation: *shapes*, drawn when first asked for, and photographs.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from knet.data.catalog import keep_records
from knet.data.on_error import check_on_error
from knet.data.register import (
    PathLike,
    datasets_root,
    register_coco_instances,
    register_coco_panoptic,
    register_sem_seg,
)
from knet.data.shapes.drawing import THING_NAMES
from knet.data.shapes.writer import is_current, write_shapes
from knet.data.shard_set import register_shards
from knet.data.toy import toy_data
from knet.errors import UserError

logger = logging.getLogger(__name__)

SHAPES_SCENES = {"train": 1600, "val": 200}
SHAPES_THINGS = {"shapes": THING_NAMES, "shapes3": THING_NAMES[:3]}

_FORMATS: dict[str, Callable[..., None]] = {
    "coco_panoptic": register_coco_panoptic,
    "coco_instances": register_coco_instances,
    "semantic": register_sem_seg,
    "shards": register_shards,
}


def register_custom(cfg: CfgNode) -> None:
    """Registers each data set of ``cfg.DATASETS.CUSTOM``; registering it again changes nothing.

    An entry is a dict with ``NAME``, ``FORMAT`` (``coco_panoptic``, ``coco_instances``,
    ``semantic`` or ``shards``) and the arguments of :func:`register_coco_panoptic`,
    :func:`register_coco_instances`, :func:`register_sem_seg` or :func:`register_shards` in upper
    case. Relative paths count from :func:`datasets_root`.

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
        _check(entry, where)
        name, form = entry["NAME"], entry["FORMAT"]
        if name in names:
            raise ValueError(f"{where}: the name {name!r} comes twice in DATASETS.CUSTOM")
        names.add(name)
        arguments = {
            key.lower(): _value(key, entry[key], where) for key in _keys(form) if key in entry
        }
        policy = "raise" if name in cfg.DATASETS.TEST else on_error
        _FORMATS[form](name, on_error=policy, **arguments)
    keep_records(cfg)


def _keys(form: str) -> dict[str, bool]:
    """The keys that a format takes besides NAME and FORMAT, and whether it needs them."""
    parameters = inspect.signature(_FORMATS[form]).parameters.values()
    return {
        parameter.name.upper(): parameter.default is parameter.empty
        for parameter in parameters
        if parameter.name not in ("name", "on_error")
    }


def _check(entry: Any, where: str) -> None:
    """Raises ValueError unless the keys of an entry are right."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a dict with NAME and FORMAT, not {entry!r}")
    name, form = entry.get("NAME"), entry.get("FORMAT")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: NAME must be a name for DATASETS.TRAIN and TEST, not {name!r}")
    if not isinstance(form, str) or form not in _FORMATS:
        raise ValueError(f"{where} ({name}): FORMAT is {form!r}; known are {', '.join(_FORMATS)}")
    known = ("NAME", "FORMAT", *_keys(form))
    unknown = [str(key) for key in entry if key not in known]
    if unknown:
        raise ValueError(
            f"{where} ({name}): unknown key {unknown[0]!r}; {form} takes {', '.join(known)}"
        )
    missing = [key for key, needed in _keys(form).items() if needed and key not in entry]
    if missing:
        raise ValueError(f"{where} ({name}): {form} needs {', '.join(missing)} too")


def _value(key: str, value: Any, where: str) -> Any:
    """The argument that a config value means: paths from the data sets' folder on."""
    if key.endswith(("_ROOT", "JSON", "_FILE")) or (key == "CLASSES" and isinstance(value, str)):
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: {key} must be a path, not {value!r}")
        return str(datasets_root() / os.path.expanduser(value))
    if key in ("IGNORE_LABEL", "MAX_IMAGES"):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{where}: {key} must be a whole number, not {value!r}")
    elif not isinstance(value, (list, tuple)):  # CLASSES, COLORS
        raise ValueError(f"{where}: {key} must be a list, not {value!r}")
    return value


def register_shapes(
    root: PathLike | None = None,
    *,
    splits: Sequence[str] = ("train", "val"),
    prefix: str = "shapes",
) -> None:
    """Registers ``shapes_<split>`` (panoptic) and ``shapes_<split>_instance`` (instances).

    Args:
        root: where :func:`knet.data.write_shapes` wrote the splits; ``shapes`` in
            :func:`datasets_root` by default.
        splits: which of them.
        prefix: of the names, in place of ``shapes``.

    Raises:
        FileNotFoundError: if a split has not been written.
    """
    base = datasets_root() / "shapes" if root is None else Path(root)
    for split in splits:
        folder = base / split
        if not (folder / "meta.json").is_file():
            raise FileNotFoundError(
                f"no shapes data set at {folder}; write it with `python datasets/make_shapes.py` "
                f"(it goes to $DETECTRON2_DATASETS/shapes)"
            )
        images, instances = folder / "images", folder / "instances.json"
        register_coco_panoptic(
            f"{prefix}_{split}",
            image_root=images,
            panoptic_root=folder / "panoptic",
            panoptic_json=folder / "panoptic.json",
            instances_json=instances,
            sem_seg_root=folder / "semantic",
        )
        name = f"{prefix}_{split}_instance"
        register_coco_instances(name, image_root=images, json_file=instances)


def register_builtin(names: Iterable[str]) -> None:
    """Register those of the named data sets that come with the project.

    `shapes_{train,val}` and `shapes_{train,val}_instance` are written to the data sets' folder if
    they are not there; `shapes3_…` have three of the four thing classes, to fine-tune from.
    `photos_{train,val}` are the COCO photographs of the test suite.

    Raises:
        FileNotFoundError: the photographs are missing from the installation.
    """
    for name in names:
        if name in DatasetCatalog:
            continue
        kind, _, rest = name.partition("_")
        split = rest.removesuffix("_instance")
        if kind in SHAPES_THINGS and split in SHAPES_SCENES:
            root, scenes = datasets_root() / kind, SHAPES_SCENES[split]
            if comm.is_main_process() and not is_current(root / split):
                logger.info("drawing %d scenes to %s", scenes, root / split)
                things = SHAPES_THINGS[kind]
                write_shapes(root, split=split, num_scenes=scenes, seed=0, things=things)
            comm.synchronize()
            register_shapes(root, splits=[split], prefix=kind)
        elif kind == "photos" and rest in ("train", "val"):
            photos = toy_data("coco_photos")
            annotations = photos / "annotations"
            register_coco_panoptic(
                name,
                image_root=photos / "images" / rest,
                panoptic_root=annotations / f"panoptic_{rest}",
                panoptic_json=annotations / f"panoptic_{rest}.json",
                instances_json=annotations / f"instances_{rest}.json",
                sem_seg_root=annotations / f"semantic_{rest}",
            )


def register_data_sets(cfg: CfgNode, names: Iterable[str] | None = None) -> None:
    """Register a config's own data sets, then those of these names that come with the project.

    Args:
        cfg: its DATASETS.
        names: by default those of TRAIN and TEST. What is not named is not drawn.

    Raises: as `register_custom` and `register_builtin`.
    """
    register_custom(cfg)  # first: one's own may be called as a built-in one
    register_builtin([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] if names is None else names)
    keep_records(cfg)


def require_registered(name: str) -> None:
    """Raise UserError if nobody has registered a data set of this name."""
    if name not in DatasetCatalog:
        raise UserError(
            f"the data set {name!r} is not registered: name one of Detectron2's; one of your own "
            "is known by its config, --config-file, which a training leaves in its output folder"
        )
