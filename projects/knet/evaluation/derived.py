"""Data sets that Detectron2's instance and semantic evaluators accept, made from a panoptic one.

``COCOEvaluator`` wants an instances JSON and no stuff among ``thing_classes``, ``SemSegEvaluator``
a PNG of contiguous ids for each image and all classes in ``stuff_dataset_id_to_contiguous_id``:
even the built-in ``coco_2017_val_panoptic`` lacks both. What is missing is derived once, below the
output folder, and offered under an internal alias; the data set's own registration stays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from knet.data.derive import panoptic_to_instances, panoptic_to_semantic
from knet.data.tar_shards import file_of
from knet.data.write_shards import category_ids, coco_classes, coco_segment
from knet.files import whole_folder, write_json
from knet.modeling.targets import IGNORE_LABEL

__all__ = ["converted_dataset", "instance_dataset", "panoptic_dataset", "semantic_dataset"]

logger = logging.getLogger(__name__)


def instance_dataset(dataset_name: str, output_folder: str | None) -> str:
    """The name under which ``COCOEvaluator`` accepts a panoptic data set.

    Args:
        dataset_name: a data set registered with ``panoptic_json`` and ``panoptic_root``.
        output_folder: derived files go below ``<output_folder>/derived/<dataset_name>``. All
            processes of a distributed run must call this, with the same folder.

    Returns:
        ``dataset_name`` itself if nothing is missing, else an alias whose metadata has the thing
        classes only and a JSON of their instances (the data set's own one, if it has one).

    Raises:
        ValueError: files have to be derived and ``output_folder`` is None, or the thing classes
            are not the first contiguous ids.
    """
    metadata = MetadataCatalog.get(dataset_name)
    thing_ids: dict[int, int] = metadata.thing_dataset_id_to_contiguous_id
    if sorted(thing_ids.values()) != list(range(len(thing_ids))):
        raise ValueError(
            f"Data set '{dataset_name}': its {len(thing_ids)} thing classes must have the "
            f"contiguous ids 0 to {len(thing_ids) - 1}; got {sorted(thing_ids.values())}."
        )
    # COCO's evaluation has its categories in the order of their data set ids; Detectron2 names
    # the results per class by position, which is right only if contiguous ids have that order.
    class_names = [metadata.thing_classes[thing_ids[key]] for key in sorted(thing_ids)]
    json_file = metadata.get("json_file")
    if not json_file or not PathManager.exists(json_file):
        json_file = _derive_once(
            dataset_name, output_folder, "instances.json", panoptic_to_instances
        )
    elif list(metadata.thing_classes) == class_names:
        return dataset_name
    return _register_alias(
        "instances", dataset_name, json_file=json_file, thing_classes=class_names
    )


def panoptic_dataset(dataset_name: str, output_folder: str | None) -> str:
    """The name under which evaluators find the JSON of a panoptic data set of tar shards.

    Its PNGs stay in the shards.

    Args:
        dataset_name: a panoptic data set.
        output_folder: as for :func:`instance_dataset`.

    Returns:
        ``dataset_name`` itself if it has a JSON, else an alias with one.

    Raises:
        ValueError: a JSON has to be written and ``output_folder`` is None.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("panoptic_json"):
        return dataset_name
    path, root = _folder(dataset_name, output_folder) / "panoptic.json", metadata.shard_root
    if comm.is_main_process():
        ids, images, annotations = category_ids(metadata), [], []
        for record in DatasetCatalog.get(dataset_name):
            size = {key: record[key] for key in ("height", "width") if key in record}
            images.append({"id": record["image_id"], "file_name": record["file_name"], **size})
            annotation = {
                "image_id": record["image_id"],
                "file_name": os.path.relpath(record["pan_seg_file_name"], root),
                "segments_info": [coco_segment(one, ids) for one in record["segments_info"]],
            }
            annotations.append(annotation)
        path.parent.mkdir(parents=True, exist_ok=True)
        classes = coco_classes("coco_panoptic", metadata)
        write_json(path, {**classes, "images": images, "annotations": annotations})
    comm.synchronize()
    return _register_alias("panoptic", dataset_name, panoptic_json=str(path), panoptic_root=root)


def semantic_dataset(dataset_name: str, output_folder: str | None) -> str:
    """The name under which ``SemSegEvaluator`` accepts a panoptic data set.

    The classes are those of the panoptic data set: things first, then stuff. Void pixels of the
    ground truth are ignored.

    Args:
        dataset_name, output_folder: as for :func:`instance_dataset`.

    Returns:
        ``dataset_name`` itself if nothing is missing, else an alias whose records have
        ``sem_seg_file_name`` and whose metadata maps all classes.

    Raises:
        ValueError: files have to be derived and ``output_folder`` is None.
    """
    metadata = MetadataCatalog.get(dataset_name)
    stuff_ids = dict(metadata.stuff_dataset_id_to_contiguous_id)
    class_ids = {**metadata.thing_dataset_id_to_contiguous_id, **stuff_ids}
    ignore_label = metadata.get("ignore_label")
    changes = {"ignore_label": IGNORE_LABEL if ignore_label is None else ignore_label}
    records = DatasetCatalog.get(dataset_name)
    files = {record["file_name"]: record.get("sem_seg_file_name") for record in records}
    if all(file is not None and PathManager.exists(file_of(file)) for file in files.values()):
        # semantic ids of their own: things are one class, say
        separate = sorted(class_ids.values()) != list(range(len(metadata.stuff_classes)))
        if separate or (stuff_ids == class_ids and ignore_label is not None):
            return dataset_name
    else:
        root = _derive_once(
            dataset_name, output_folder, "semantic", panoptic_to_semantic,
            class_ids=class_ids, **changes,
        )  # fmt: skip
        for record in records:
            below = os.path.relpath(record["pan_seg_file_name"], metadata.panoptic_root)
            files[record["file_name"]] = os.path.join(root, below)
    changes["stuff_dataset_id_to_contiguous_id"] = class_ids
    return _register_alias("semantic", dataset_name, files, **changes)


def converted_dataset(dataset_name: str, output_folder: str | None) -> str:
    """The name under which ``COCOEvaluator`` finds the JSON of a data set that has none.

    Detectron2 would take the file that an earlier evaluation left in the folder, whatever the data
    set gives by now: here it is written each time.

    Args:
        dataset_name: a data set of Detectron2's standard form, registered without ``json_file``.
        output_folder: as for :func:`instance_dataset`.

    Raises:
        ValueError: ``output_folder`` is None.
    """
    path = _folder(dataset_name, output_folder) / "coco_format.json"
    if comm.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, convert_to_coco_dict(dataset_name))
    comm.synchronize()
    return _register_alias("coco", dataset_name, json_file=str(path))


def _folder(dataset_name: str, output_folder: str | None) -> Path:
    if output_folder is None:
        raise ValueError(
            f"Data set '{dataset_name}' lacks files of its own that its evaluators read; give an "
            "output folder for those derived from its annotations."
        )
    return Path(output_folder, "derived", dataset_name)


def _derive_once(
    dataset_name: str,
    output_folder: str | None,
    name: str,
    derive: Callable[..., Any],
    **options: Any,
) -> str:
    """The file or folder ``name`` that ``derive(panoptic_json, panoptic_root, path)`` makes.

    One process of the run makes it, whole or not at all. Its folder is named after what it is made
    of, so that other or newer annotations never meet old files; those are removed.
    """
    folder, kind, made = _folder(dataset_name, output_folder), Path(name).stem, ""
    if comm.is_main_process():
        metadata = MetadataCatalog.get(dataset_name)
        json_file, root = (
            PathManager.get_local_path(path)
            for path in (metadata.panoptic_json, metadata.panoptic_root)
        )
        pngs = [record["pan_seg_file_name"] for record in DatasetCatalog.get(dataset_name)]
        source = [os.path.abspath(root), sorted((k, str(v)) for k, v in options.items())]
        source += [[path, *_state(path)] for path in (os.path.abspath(json_file), *pngs)]
        made = f"{kind}-{hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]}"
        if not (folder / made).exists():
            logger.debug("Deriving %s from %s", folder / made, json_file)
            with whole_folder(folder / made) as unfinished:
                derive(json_file, root, os.fspath(unfinished / name), **options)
            for older in set(folder.glob(f"{kind}-{'[0-9a-f]' * 16}")) - {folder / made}:
                shutil.rmtree(older)
    # from the process that made it: another machine's copies of the files may be of another time
    return str(folder / comm.all_gather(made)[0] / name)


def _state(path: str) -> list[int]:
    """Bytes and time of a file; nothing where it is missing, which deriving then reports."""
    try:
        status = os.stat(PathManager.get_local_path(file_of(path)))
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _register_alias(
    kind: str, dataset_name: str, label_files: dict[str, str] | None = None, **changes: Any
) -> str:
    """A data set beside another, with changed metadata and, if given, label PNGs by picture."""

    def load() -> list[dict[str, Any]]:
        records = DatasetCatalog.get(dataset_name)
        if label_files is None:
            return records
        return [{**r, "sem_seg_file_name": label_files[r["file_name"]]} for r in records]

    alias = f"{dataset_name}/{kind}"
    for catalog in (DatasetCatalog, MetadataCatalog):
        # An earlier evaluation may have used another output folder.
        if alias in catalog.list():
            catalog.remove(alias)
    DatasetCatalog.register(alias, load)
    values = {**MetadataCatalog.get(dataset_name).as_dict(), **changes, "name": alias}
    MetadataCatalog.get(alias).set(**values)
    return alias
