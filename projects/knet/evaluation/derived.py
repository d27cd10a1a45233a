"""Data sets that Detectron2's instance and semantic evaluators accept, made from a panoptic one.

Panoptic ground truth determines instances and semantic labels, but Detectron2's evaluators want
more than many panoptic data sets bring: ``COCOEvaluator`` an instances JSON and metadata without
stuff among ``thing_classes``, ``SemSegEvaluator`` a PNG of contiguous ids for each image and all
classes in ``stuff_dataset_id_to_contiguous_id``. Even the built-in ``coco_2017_val_panoptic``
lacks both. What is missing is derived once, below the output folder, and offered under an
internal alias; the data set's own registration is not changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from knet.files import read_text, whole_file, whole_folder, write_json

__all__ = ["converted_dataset", "instance_dataset", "semantic_dataset"]

logger = logging.getLogger(__name__)

IGNORE_LABEL = 255


def instance_dataset(dataset_name: str, output_folder: str | None) -> str:
    """The name under which ``COCOEvaluator`` accepts a panoptic data set.

    Args:
        dataset_name: a data set registered with ``panoptic_json`` and ``panoptic_root``.
        output_folder: derived files go to ``<output_folder>/derived/<dataset_name>``. All
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
        json_file = os.path.join(_folder(dataset_name, output_folder), "instances.json")

        def derive(target: str) -> None:
            from knet.data.derive import panoptic_to_instances

            panoptic_to_instances(
                PathManager.get_local_path(metadata.panoptic_json),
                PathManager.get_local_path(metadata.panoptic_root),
                target,
            )

        _derive_once(json_file, whole_file, derive, metadata, DatasetCatalog.get(dataset_name), {})
    elif list(metadata.thing_classes) == class_names:
        return dataset_name
    return _register_alias(
        f"{dataset_name}/instances",
        dataset_name,
        lambda: DatasetCatalog.get(dataset_name),
        json_file=json_file,
        thing_classes=class_names,
    )


def semantic_dataset(dataset_name: str, output_folder: str | None) -> str:
    """The name under which ``SemSegEvaluator`` accepts a panoptic data set.

    The classes are those of the panoptic data set: things first, then stuff. Void pixels of the
    ground truth are ignored.

    Args:
        dataset_name: as for :func:`instance_dataset`.
        output_folder: as for :func:`instance_dataset`.

    Returns:
        ``dataset_name`` itself if nothing is missing, else an alias whose records have
        ``sem_seg_file_name`` and whose metadata maps all classes.

    Raises:
        ValueError: files have to be derived and ``output_folder`` is None.
    """
    metadata = MetadataCatalog.get(dataset_name)
    class_ids = {
        **metadata.thing_dataset_id_to_contiguous_id,
        **metadata.stuff_dataset_id_to_contiguous_id,
    }
    records = DatasetCatalog.get(dataset_name)
    has_files = all(
        "sem_seg_file_name" in record and PathManager.exists(record["sem_seg_file_name"])
        for record in records
    )
    separated = sorted(class_ids.values()) != list(range(len(metadata.stuff_classes)))
    if has_files and separated:
        return dataset_name  # semantic ids of their own (things are one class, say)
    has_metadata = (
        dict(metadata.stuff_dataset_id_to_contiguous_id) == class_ids
        and metadata.get("ignore_label") is not None
    )
    if has_files and has_metadata:
        return dataset_name

    files = {r["file_name"]: r.get("sem_seg_file_name") for r in records}
    ignore_label = metadata.get("ignore_label", IGNORE_LABEL)
    if not has_files:
        root = os.path.join(_folder(dataset_name, output_folder), "semantic")

        def derive(target: str) -> None:
            from knet.data.derive import panoptic_to_semantic

            panoptic_to_semantic(
                PathManager.get_local_path(metadata.panoptic_json),
                PathManager.get_local_path(metadata.panoptic_root),
                target,
                class_ids=class_ids,
                ignore_label=ignore_label,
            )

        labels = {str(key): label for key, label in sorted(class_ids.items())}
        parameters = {"class_ids": labels, "ignore_label": ignore_label}
        _derive_once(root, whole_folder, derive, metadata, records, parameters)
        files = {
            r["file_name"]: os.path.join(
                root, os.path.relpath(r["pan_seg_file_name"], metadata.panoptic_root)
            )
            for r in records
        }

    def load() -> list[dict[str, Any]]:
        return [
            {**record, "sem_seg_file_name": files[record["file_name"]]}
            for record in DatasetCatalog.get(dataset_name)
        ]

    return _register_alias(
        f"{dataset_name}/semantic",
        dataset_name,
        load,
        stuff_dataset_id_to_contiguous_id=class_ids,
        ignore_label=ignore_label,
    )


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
    path = os.path.join(_folder(dataset_name, output_folder), "coco_format.json")
    if comm.is_main_process():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_json(path, convert_to_coco_dict(dataset_name))
    comm.synchronize()
    return _register_alias(
        f"{dataset_name}/coco",
        dataset_name,
        lambda: DatasetCatalog.get(dataset_name),
        json_file=path,
    )


def _folder(dataset_name: str, output_folder: str | None) -> str:
    if output_folder is None:
        raise ValueError(
            f"Data set '{dataset_name}' lacks files of its own that its evaluators read; give an "
            "output folder for those derived from its annotations."
        )
    return os.path.join(output_folder, "derived", dataset_name)


def _derive_once(
    target: str,
    whole: Callable[[str], AbstractContextManager[Path]],
    derive: Callable[[str], None],
    metadata: Metadata,
    records: Sequence[dict[str, Any]],
    parameters: dict[str, Any],
) -> None:
    """Call ``derive(path)`` in one process of the run; what it writes becomes ``target``.

    ``whole`` is that of :mod:`knet.files` for a file or a folder.
    What the result was made of is written beside it, so that other or newer annotations do not
    silently meet old files.
    """
    stamp_file = f"{target}.source.json"
    if comm.is_main_process():
        stamp = {"source": _source(metadata, records), **parameters}
        if not os.path.exists(target) or _read_json(stamp_file) != stamp:
            logger.debug("Deriving %s from %s", target, metadata.panoptic_json)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with whole(target) as unfinished:
                derive(os.fspath(unfinished))
                # new files must not stand under the stamp of old ones
                Path(stamp_file).unlink(missing_ok=True)
            write_json(stamp_file, stamp)
    comm.synchronize()


def _source(metadata: Metadata, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Path, size and time of the JSON and of every PNG; those of the PNGs as one hash."""
    digest = hashlib.sha256()
    for record in records:
        path = record["pan_seg_file_name"]
        digest.update(json.dumps([path, *_state(path)]).encode())
    json_file = PathManager.get_local_path(metadata.panoptic_json)
    return {
        "json": [os.path.abspath(json_file), *_state(json_file)],
        "folder": os.path.abspath(PathManager.get_local_path(metadata.panoptic_root)),
        "pngs": digest.hexdigest(),
    }


def _state(path: str) -> list[int]:
    """Bytes and time of a file; nothing where it is missing, which deriving then reports."""
    try:
        status = os.stat(PathManager.get_local_path(path))
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _read_json(path: str) -> Any:
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError):
        return None


def _register_alias(
    alias: str, dataset_name: str, load: Callable[[], list[dict]], **changes: Any
) -> str:
    for catalog in (DatasetCatalog, MetadataCatalog):
        # An earlier evaluation may have used another output folder.
        if alias in catalog.list():
            catalog.remove(alias)
    values = {**MetadataCatalog.get(dataset_name).as_dict(), **changes, "name": alias}
    DatasetCatalog.register(alias, load)
    MetadataCatalog.get(alias).set(**values)
    return alias
