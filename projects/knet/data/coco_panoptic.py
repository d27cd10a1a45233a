"""Reads COCO panoptic annotations, with every defect of the file found and named.

The PNGs are not opened here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from knet.data.coco_file import (
    IMAGE_RULES,
    LABEL_RULES,
    check_keys,
    check_values,
    entries,
    find_image,
    image_part,
    is_id,
    load_json,
    read_images,
    shared_files,
)
from knet.data.defects import Defects, failure, is_broken
from knet.data.on_error import Scan
from knet.data.panoptic_png import LARGEST_ID

_PNG_RULES = {"file_name": (IMAGE_RULES["file_name"][0], "the path of a PNG")}


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
    defects = Defects(panoptic_json)
    images, broken_ids = read_images(content, defects, sizes=False)
    records: list[dict[str, Any]] = []
    broken: set[int] = set()
    things = meta["thing_dataset_id_to_contiguous_id"]
    class_ids = {**meta["stuff_dataset_id_to_contiguous_id"], **things}
    annotated: dict[Any, int] = {}  # image id → position of its record
    if "annotations" not in content:
        mend = "add it; `knet predict --results FOLDER` predicts pictures without annotations"
        raise failure("missing-key", panoptic_json, "", "lacks `annotations`", mend=mend)
    for position, entry in entries(content, "annotations", defects):
        image_id = entry.get("image_id")
        known = is_id(image_id, text=True)
        found = defects.at(f"image {image_id}" if known else f"annotations[{position}]")
        check_keys(entry, ("image_id", "file_name", "segments_info"), found)
        check_values(entry, _PNG_RULES, found)
        if "segments_info" in entry and not isinstance(entry["segments_info"], list):
            found.add("bad-value", "segments_info is no list")
        where = f"annotation of image {image_id!r}"
        image = find_image(entry, images, broken_ids, found, where)
        if image is not None and image_id in annotated:
            found.add("duplicate-annotation", "a second annotation of this image")
            broken.add(annotated[image_id])
            image = None
        if isinstance(entry.get("segments_info"), list):
            _check_segments(entry["segments_info"], class_ids, found)
        defects += found
        if image is None:
            continue
        annotated[image_id] = len(records)
        record = image_part(image, image_root)
        if is_broken(found) or image_id in broken_ids:
            broken.add(len(records))
        if not is_broken(found):
            record["pan_seg_file_name"] = os.path.join(panoptic_root, entry["file_name"])
            record["segments_info"] = [
                _segment(segment, class_ids, things) for segment in entry["segments_info"]
            ]
            if sem_seg_root is not None:
                record["sem_seg_file_name"] = os.path.join(sem_seg_root, entry["file_name"])
        records.append(record)
    for image_id in images:
        if image_id not in annotated:
            name = f"image {image_id}"
            defects.add("image-without-annotation", "no annotation of this image", name)
    for key in ("file_name", "pan_seg_file_name"):
        for index, defect in shared_files(records, key, panoptic_json, _labels).items():
            defects.append(defect)
            if defect.severity == "error":
                broken.add(index)
    return Scan(records, broken, len(broken_ids - set(images)), defects)


def _labels(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record.get("pan_seg_file_name"), record.get("segments_info")


def _check_segments(segments: list[Any], class_ids: Mapping[int, int], image: Defects) -> None:
    """Adds what is wrong with the segments of one image, without a look at its PNG."""
    seen: set[Any] = set()
    for position, segment in enumerate(segments):
        place = f"{image.record}: segments_info[{position}]"
        if not isinstance(segment, dict):
            image.add("bad-value", "is not an object", place)
            continue
        segment_id: Any = segment.get("id")
        found = image.at(f"{image.record}: segment {segment_id}" if is_id(segment_id) else place)
        check_keys(segment, ("id", "category_id"), found)
        if "id" in segment and not (is_id(segment_id) and 0 <= segment_id <= LARGEST_ID):
            found.add("bad-value", f"id is {segment_id!r}, not a whole number up to {LARGEST_ID}")
        elif "id" in segment:
            if segment_id == 0:
                found.add("segment-id-zero", "the id 0 is reserved for void")
            elif segment_id in seen:
                found.add("duplicate-segment-id", "the id is twice in its segments_info")
            seen.add(segment_id)
        category: Any = segment.get("category_id")
        if "category_id" in segment and not (is_id(category) and category in class_ids):
            found.add("unknown-category", f"unknown category {category!r}")
        check_values(segment, LABEL_RULES, found)
        image += found


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
