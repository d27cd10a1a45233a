"""Reads COCO panoptic annotations, with every defect of the file found and named.

The PNGs are not opened here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from knet.data.coco_file import (
    entries,
    find_image,
    image_part,
    is_id,
    is_text,
    load_json,
    missing_keys,
    read_images,
    shared_files,
    value_defects,
)
from knet.data.defects import DataError, Defects, is_broken, make_defect
from knet.data.on_error import Scan
from knet.data.panoptic_png import LARGEST_ID


def scan_coco_panoptic(
    *,
    panoptic_json: str,
    image_root: str,
    panoptic_root: str,
    sem_seg_root: str | None,
    meta: Mapping[str, Any],
    content: Mapping[str, Any] | None = None,
) -> Scan:
    """Reads the records of a panoptic data set.

    Args:
        panoptic_json, image_root, panoptic_root, sem_seg_root: as in
            :func:`knet.data.register_coco_panoptic`.
        meta: with both ``…_dataset_id_to_contiguous_id`` maps.
        content: of the file, if it has been read already.

    Returns:
        One dict an image, as Detectron2's own COCO panoptic data sets give it: ``file_name``,
        ``image_id``, ``height``, ``width`` (if the JSON has them), ``pan_seg_file_name``,
        ``sem_seg_file_name`` (with ``sem_seg_root``) and ``segments_info``, a list of ``id``,
        ``category_id`` (contiguous), ``isthing``, ``iscrowd``, ``area``, ``bbox``. A record with
        an error lacks its labels.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if the file as a whole is not usable.
    """
    content = load_json(panoptic_json) if content is None else content
    defects = Defects()
    images, broken_ids = read_images(content, panoptic_json, defects, sizes=False)
    scan = Scan(defects=defects, lost=len(broken_ids - set(images)))
    things = meta["thing_dataset_id_to_contiguous_id"]
    class_ids = {**meta["stuff_dataset_id_to_contiguous_id"], **things}
    annotated: dict[Any, int] = {}  # image id → position of its record
    if "annotations" not in content:
        mend = "add it; `demo/demo.py --results FOLDER` predicts pictures without annotations"
        problem = "lacks `annotations`"
        raise DataError(make_defect("missing-key", panoptic_json, "", problem, mend=mend))
    for position, entry in entries(content, "annotations", panoptic_json, defects):
        image_id = entry.get("image_id")
        known = is_id(image_id, text=True)
        name = f"image {image_id}" if known else f"annotations[{position}]"
        found = _entry_defects(entry, panoptic_json, name)
        where = f"annotation of image {image_id!r}"
        image, orphaned = find_image(entry, images, broken_ids, panoptic_json, where)
        found += orphaned
        if image is not None and image_id in annotated:
            problem = "a second annotation of this image"
            found.add("duplicate-annotation", panoptic_json, name, problem)
            scan.broken.add(annotated[image_id])
            image = None
        if isinstance(entry.get("segments_info"), list):
            found += _segment_defects(entry["segments_info"], class_ids, panoptic_json, name)
        defects += found
        if image is None:
            continue
        annotated[image_id] = len(scan.records)
        record = image_part(image, image_root)
        if is_broken(found) or image_id in broken_ids:
            scan.broken.add(len(scan.records))
        if not is_broken(found):
            record["pan_seg_file_name"] = os.path.join(panoptic_root, entry["file_name"])
            record["segments_info"] = [
                _segment(segment, class_ids, things) for segment in entry["segments_info"]
            ]
            if sem_seg_root is not None:
                record["sem_seg_file_name"] = os.path.join(sem_seg_root, entry["file_name"])
        scan.records.append(record)
    for image_id in images:
        if image_id not in annotated:
            problem = "no annotation of this image"
            defects.add("image-without-annotation", panoptic_json, f"image {image_id}", problem)
    for key in ("file_name", "pan_seg_file_name"):
        for index, defect in shared_files(scan.records, key, panoptic_json, _labels).items():
            defects.append(defect)
            if defect.severity == "error":
                scan.broken.add(index)
    return scan


def _labels(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record.get("pan_seg_file_name"), record.get("segments_info")


def _entry_defects(entry: Mapping[str, Any], path: str, name: str) -> Defects:
    found = Defects(missing_keys(entry, ("image_id", "file_name", "segments_info"), path, name))
    if "file_name" in entry and not (entry["file_name"] and is_text(entry["file_name"])):
        problem = f"file_name is {entry['file_name']!r}, not the path of a PNG"
        found.add("bad-value", path, name, problem)
    if "segments_info" in entry and not isinstance(entry["segments_info"], list):
        found.add("bad-value", path, name, "segments_info is no list")
    return found


def _segment_defects(
    segments: list[Any], class_ids: Mapping[int, int], path: str, image: str
) -> Defects:
    """What is wrong with the segments of one image, without a look at its PNG."""
    found = Defects()
    seen: set[Any] = set()
    for position, segment in enumerate(segments):
        place = f"{image}: segments_info[{position}]"
        if not isinstance(segment, dict):
            found.add("bad-value", path, place, "is not an object")
            continue
        segment_id: Any = segment.get("id")
        name = f"{image}: segment {segment_id}" if is_id(segment_id) else place
        found += missing_keys(segment, ("id", "category_id"), path, name)
        if "id" in segment and not (is_id(segment_id) and 0 <= segment_id <= LARGEST_ID):
            problem = f"id is {segment_id!r}, not a whole number up to {LARGEST_ID}"
            found.add("bad-value", path, name, problem)
        elif "id" in segment:
            if segment_id == 0:
                found.add("segment-id-zero", path, name, "the id 0 is reserved for void")
            elif segment_id in seen:
                problem = "the id is twice in its segments_info"
                found.add("duplicate-segment-id", path, name, problem)
            seen.add(segment_id)
        category: Any = segment.get("category_id")
        if "category_id" in segment and not (is_id(category) and category in class_ids):
            found.add("unknown-category", path, name, f"unknown category {category!r}")
        found += value_defects(segment, path, name)
    return found


def _segment(
    segment: Mapping[str, Any], class_ids: Mapping[int, int], things: Mapping[int, int]
) -> dict[str, Any]:
    category = segment["category_id"]
    return {
        "id": segment["id"],
        "category_id": class_ids[category],
        "isthing": category in things,
        "iscrowd": segment.get("iscrowd", 0),
        **{key: segment[key] for key in ("area", "bbox") if key in segment},
    }
