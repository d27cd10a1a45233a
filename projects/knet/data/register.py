"""Registers data sets with Detectron2; every metadata key is derived from the annotations.

Nothing is registered on import, and only the categories are read on registration.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Union

from detectron2.data import MetadataCatalog

from knet.data.catalog import is_registered, register
from knet.data.categories import (
    check_classes,
    checked_colors,
    instance_metadata,
    panoptic_metadata,
    read_categories,
    read_class_names,
)
from knet.data.coco_instances import scan_coco_instances
from knet.data.coco_panoptic import scan_coco_panoptic
from knet.data.on_error import Scan
from knet.data.record_cache import Source
from knet.data.semantic_folders import pair_images_with_labels, read_pairs, scan_sem_seg
from knet.modeling.targets import IGNORE_LABEL

logger = logging.getLogger(__name__)

PathLike = Union[str, "os.PathLike[str]"]


def datasets_root() -> Path:
    """The folder of all data sets: ``$DETECTRON2_DATASETS``, by default ``datasets``."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def register_coco_panoptic(
    name: str,
    *,
    image_root: PathLike,
    panoptic_root: PathLike,
    panoptic_json: PathLike,
    instances_json: PathLike | None = None,
    sem_seg_root: PathLike | None = None,
    on_error: str = "raise",
) -> None:
    """Registers a data set in COCO panoptic format.

    The panoptic PNGs and JSON are all that training needs. ``instances_json`` and
    ``sem_seg_root`` serve Detectron2's instance and semantic *evaluators*; both can be derived,
    see :func:`knet.data.panoptic_to_instances` and :func:`knet.data.panoptic_to_semantic`.

    Args:
        name: for ``cfg.DATASETS``.
        image_root: folder of the pictures.
        panoptic_root: folder of the panoptic PNGs.
        panoptic_json: COCO panoptic annotations.
        instances_json: COCO instance annotations of the thing categories.
        sem_seg_root: folder of label PNGs with contiguous ids, 255 for void, named as the
            panoptic PNGs.
        on_error: what happens to images whose annotations have an error when the records are
            read: ``raise`` (a DataError that names file, record and mend) or ``skip`` (they are
            left out, with one warning that counts them).

    Raises:
        FileNotFoundError: naming what is missing.
        ValueError: if the categories are not usable (DataError), the name is taken, or
            ``on_error`` is something else.
    """
    paths: dict[str, Any] = {
        "image_root": existing_folder(image_root, "the pictures", name),
        "panoptic_root": existing_folder(panoptic_root, "the panoptic PNGs", name),
        "panoptic_json": _file(panoptic_json, "the panoptic annotations", name),
    }
    if instances_json is not None:
        paths["json_file"] = _file(instances_json, "the instance annotations", name)
    if sem_seg_root is not None:
        paths["sem_seg_root"] = existing_folder(sem_seg_root, "the semantic labels", name)
    if is_registered(name, paths, on_error):
        return
    meta = panoptic_metadata(read_categories(paths["panoptic_json"], panoptic=True))

    def scan() -> Scan:
        return scan_coco_panoptic(
            panoptic_json=paths["panoptic_json"],
            image_root=paths["image_root"],
            panoptic_root=paths["panoptic_root"],
            sem_seg_root=paths.get("sem_seg_root"),
            meta=meta,
        )

    source = Source([paths["panoptic_json"]], settings=paths)
    meta.update(**paths, evaluator_type="coco_panoptic_seg")
    meta.update(ignore_label=IGNORE_LABEL, label_divisor=1000)
    register(name, paths, scan, source, on_error, meta)


def register_coco_instances(
    name: str, *, image_root: PathLike, json_file: PathLike, on_error: str = "raise"
) -> None:
    """Registers a data set in COCO instance format.

    As Detectron2's function of this name, but class names are known before the data are loaded,
    so that a model can be built for them, missing files are reported here, and no annotation
    is dropped in silence.

    Args:
        name: for ``cfg.DATASETS``.
        image_root: folder of the pictures.
        json_file: COCO instance annotations.
        on_error: as in :func:`register_coco_panoptic`.

    Raises:
        FileNotFoundError, ValueError: as :func:`register_coco_panoptic`.
    """
    images = existing_folder(image_root, "the pictures", name)
    annotations = _file(json_file, "the instance annotations", name)
    paths = {"image_root": images, "json_file": annotations}
    if is_registered(name, paths, on_error):
        return
    meta = instance_metadata(read_categories(annotations, panoptic=False))
    class_ids = meta["thing_dataset_id_to_contiguous_id"]

    def scan() -> Scan:
        return scan_coco_instances(annotations, images, class_ids)

    source = Source([annotations], settings=paths)
    register(name, paths, scan, source, on_error, {**meta, **paths, "evaluator_type": "coco"})


def register_sem_seg(
    name: str,
    *,
    image_root: PathLike,
    sem_seg_root: PathLike,
    classes: Sequence[str] | PathLike,
    colors: Sequence[Sequence[int]] | None = None,
    ignore_label: int = IGNORE_LABEL,
    pairs_file: PathLike | None = None,
    max_images: int | None = None,
    on_error: str = "raise",
) -> None:
    """Registers a data set of pictures and semantic label PNGs.

    Files are listed here and paired by their relative paths without suffix, unless a file of pairs
    is given; sizes are read from the pictures' headers when the records are first asked for.

    Args:
        name: for ``cfg.DATASETS``.
        image_root: folder of the pictures (jpg, jpeg, png, webp, bmp, tif), at any depth.
        sem_seg_root: folder of 8 bit greyscale PNGs whose values are class indices.
        classes: the class names in the order of their indices, or a text file with one a line,
            or a JSON file with a list of names or of dicts with ``name`` and perhaps ``color``.
        colors: RGB in 0 … 255 of each class, for drawings; by default those of the JSON file,
            else generated.
        ignore_label: value of pixels without a label, 0 to 255.
        pairs_file: text with one pair a line: the path of a picture below ``image_root``, a tab,
            and that of its label PNG below ``sem_seg_root``; for a part of the folders, or names
            that differ.
        max_images: keep only the first so many, in the order of their paths.
        on_error: what happens to pictures without labels, labels without a picture and pictures
            that cannot be read: ``raise`` (a DataError that names the file and the mend) or
            ``skip`` (they are left out, with one warning that counts them).

    Raises:
        FileNotFoundError: naming the folder or file that is missing.
        ValueError: if pictures and labels do not pair (DataError), the classes, the ignored
            label, the colours or ``on_error`` are not usable, or the name is taken.
    """
    where = f"data set {name!r}"
    paths = {
        "image_root": existing_folder(image_root, "the pictures", name),
        "sem_seg_root": existing_folder(sem_seg_root, "the label PNGs", name),
    }
    file = ""
    if isinstance(classes, (str, Path)):
        classes = _file(classes, "the class names (a list of names may be given too)", name)
        file = f" ({classes})"
    names, own_colors = read_class_names(classes, where)
    check_classes(names, ignore_label, where + file)
    if colors is not None:
        own_colors = checked_colors(colors, names, where)
    if max_images is not None and max_images < 1:
        raise ValueError(f"{where}: max_images is {max_images}; it must be 1 or more, or not given")
    meta: dict[str, Any] = {**paths, "stuff_classes": names, "stuff_colors": own_colors}
    meta["ignore_label"] = ignore_label
    arguments = {**meta, "max_images": max_images}
    if pairs_file is not None:
        arguments["pairs_file"] = _file(pairs_file, "the pairs of pictures and labels", name)
    if is_registered(name, arguments, on_error):
        return
    roots = Path(meta["image_root"]), Path(meta["sem_seg_root"])
    if pairs_file is None:
        pairing = pair_images_with_labels(*roots, where)
    else:
        pairing = read_pairs(Path(pairs_file), *roots, where)
    if pairing.error is not None and on_error == "raise":
        raise pairing.error
    for message in pairing.left_out:
        logger.warning("%s: %s", where, message)

    def scan() -> Scan:
        return scan_sem_seg(pairing, max_images)

    opened = [str(image) for _, image, _ in pairing.pairs[:max_images]]
    source = Source(opened=opened, listed=[*map(str, pairing.pairs)], settings=arguments)
    register(name, arguments, scan, source, on_error, {**meta, "evaluator_type": "sem_seg"})


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


def existing_folder(path: PathLike, what: str, name: str) -> str:
    """The path as a string; FileNotFoundError that names data set and use if it is no folder."""
    return _present(path, "folder", os.path.isdir, what, name)


def _file(path: PathLike, what: str, name: str) -> str:
    return _present(path, "file", os.path.isfile, what, name)


def _present(
    path: PathLike, kind: str, is_there: Callable[[PathLike], bool], what: str, name: str
) -> str:
    """The path as a string; FileNotFoundError if nothing of its kind is there."""
    if not is_there(path):
        raise FileNotFoundError(
            f"data set {name!r}: no {kind} {os.fspath(path)} for {what}; correct the path, or put "
            f"the data there ($DETECTRON2_DATASETS names the folder of all data sets)"
        )
    return os.fspath(path)
