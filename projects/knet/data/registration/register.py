"""Registers data sets with Detectron2; every metadata key is derived from the annotations.

Nothing is registered on import, and only the categories are read on registration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from knet.data.annotations.coco_json import scan_coco_instances
from knet.data.annotations.coco_panoptic_json import scan_coco_panoptic
from knet.data.on_error import register_scan, set_on_error, usable_records
from knet.data.registration.catalog import (
    PathLike,
    datasets_root,
    is_registered,
    optional_file,
    optional_folder,
)
from knet.data.registration.categories import instance_metadata, panoptic_metadata, read_categories

__all__ = [
    "load_coco_panoptic",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_shapes",
]


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
    paths = {
        "image_root": optional_folder(image_root, "the pictures", name),
        "panoptic_root": optional_folder(panoptic_root, "the panoptic PNGs", name),
        "panoptic_json": optional_file(panoptic_json, "the panoptic annotations", name),
        "json_file": optional_file(instances_json, "the instance annotations", name),
        "sem_seg_root": optional_folder(sem_seg_root, "the semantic labels", name),
    }
    set_on_error(name, on_error)
    if is_registered(name, paths):
        return
    assert paths["panoptic_json"] is not None
    meta = panoptic_metadata(read_categories(paths["panoptic_json"], panoptic=True))
    register_scan(name, paths, lambda: scan_coco_panoptic(meta=meta, **_loader_paths(paths)))
    MetadataCatalog.get(name).set(
        **{key: path for key, path in paths.items() if path is not None},
        **meta,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
    )


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
    images = optional_folder(image_root, "the pictures", name)
    annotations = optional_file(json_file, "the instance annotations", name)
    assert images is not None and annotations is not None
    paths: dict[str, str | None] = {"image_root": images, "json_file": annotations}
    set_on_error(name, on_error)
    if is_registered(name, paths):
        return
    meta = instance_metadata(read_categories(annotations, panoptic=False))
    class_ids = meta["thing_dataset_id_to_contiguous_id"]
    register_scan(name, paths, lambda: scan_coco_instances(annotations, images, class_ids))
    MetadataCatalog.get(name).set(**paths, **meta, evaluator_type="coco")


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
                f"no shapes data set at {folder}; write it with `python tools/make_shapes.py` "
                f"(it goes to $DETECTRON2_DATASETS/shapes)"
            )
        register_coco_panoptic(
            f"{prefix}_{split}",
            image_root=folder / "images",
            panoptic_root=folder / "panoptic",
            panoptic_json=folder / "panoptic.json",
            instances_json=folder / "instances.json",
            sem_seg_root=folder / "semantic",
        )
        register_coco_instances(
            f"{prefix}_{split}_instance",
            image_root=folder / "images",
            json_file=folder / "instances.json",
        )


def load_coco_panoptic(
    *,
    panoptic_json: str,
    image_root: str,
    panoptic_root: str,
    sem_seg_root: str | None,
    meta: dict[str, Any],
) -> list[dict[str, Any]]:
    """Reads the records of a panoptic data set.

    Args:
        panoptic_json, image_root, panoptic_root, sem_seg_root: as in
            :func:`register_coco_panoptic`.
        meta: with both ``…_dataset_id_to_contiguous_id`` maps.

    Returns:
        One dict an image, as Detectron2's own COCO panoptic data sets give it: ``file_name``,
        ``image_id``, ``height``, ``width`` (if the JSON has them), ``pan_seg_file_name``,
        ``sem_seg_file_name`` (with ``sem_seg_root``) and ``segments_info``, a list of ``id``,
        ``category_id`` (contiguous), ``isthing``, ``iscrowd``, ``area``, ``bbox``.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: naming the record, for what cannot be used; see :func:`scan_coco_panoptic`.
    """
    scan = scan_coco_panoptic(
        panoptic_json=panoptic_json,
        image_root=image_root,
        panoptic_root=panoptic_root,
        sem_seg_root=sem_seg_root,
        meta=meta,
    )
    return usable_records(scan, "raise", panoptic_json)


def _loader_paths(paths: dict[str, str | None]) -> dict[str, Any]:
    return {k: paths[k] for k in ("panoptic_json", "image_root", "panoptic_root", "sem_seg_root")}
