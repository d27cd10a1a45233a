"""Data sets that Detectron2's instance and semantic evaluators accept, made from a panoptic one.

Panoptic ground truth determines instances and semantic labels, but Detectron2's evaluators want
more than many panoptic data sets bring: ``COCOEvaluator`` an instances JSON and metadata without
stuff among ``thing_classes``, ``SemSegEvaluator`` a PNG of contiguous ids for each image and all
classes in ``stuff_dataset_id_to_contiguous_id``. Even the built-in ``coco_2017_val_panoptic``
lacks both. What is missing is derived once, below the output folder, and offered under an
internal alias; the data set's own registration is not changed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

__all__ = ["instance_dataset", "semantic_dataset"]

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
            from knet.data.annotations.derive import panoptic_to_instances

            panoptic_to_instances(
                PathManager.get_local_path(metadata.panoptic_json),
                PathManager.get_local_path(metadata.panoptic_root),
                target,
            )

        _derive_once(json_file, metadata.panoptic_json, derive)
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
            from knet.data.annotations.derive import panoptic_to_semantic

            panoptic_to_semantic(
                PathManager.get_local_path(metadata.panoptic_json),
                PathManager.get_local_path(metadata.panoptic_root),
                target,
                class_ids=class_ids,
                ignore_label=ignore_label,
            )

        _derive_once(root, metadata.panoptic_json, derive)
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


def _folder(dataset_name: str, output_folder: str | None) -> str:
    if output_folder is None:
        raise ValueError(
            f"Data set '{dataset_name}' lacks instance or semantic ground truth of its own; "
            "give an output folder for the files derived from its panoptic annotations."
        )
    return os.path.join(output_folder, "derived", dataset_name)


def _derive_once(target: str, source: str, derive: Callable[[str], None]) -> None:
    """Call ``derive(path)`` in one process of the run and move its result to ``target``.

    ``source`` and its time are written beside the result, so that other annotations of the same
    name, or newer ones, do not silently meet old files. A stopped run leaves no half result:
    the result is complete before it gets its name.
    """
    source = os.path.abspath(PathManager.get_local_path(source))
    stamp_file = f"{target}.source.json"
    if comm.is_main_process():
        stamp = {"file": source, "modified": os.stat(source).st_mtime_ns}
        if not os.path.exists(target) or _read_json(stamp_file) != stamp:
            logger.debug("Deriving %s from %s", target, source)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            stem, extension = os.path.splitext(target)
            unfinished = f"{stem}.unfinished-{os.getpid()}{extension}"
            try:
                derive(unfinished)
                _remove(target)
                os.replace(unfinished, target)
            finally:
                _remove(unfinished)
            with open(stamp_file, "w", encoding="utf-8") as f:
                json.dump(stamp, f)
    comm.synchronize()


def _read_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)


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
