"""Reads COCO instance annotations, with every defect of the file found and named, masks included.

The records are those of Detectron2's ``load_coco_json`` (which stops at the first defect, often
with a bare KeyError, and drops some polygons), with each annotation's ``id`` and ``area`` and the
path of the file added, and keypoints left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from knet.data.categories import instance_metadata, read_categories
from knet.data.coco_file import (
    LABEL_RULES,
    check_keys,
    check_values,
    entries,
    find_image,
    image_part,
    is_box,
    is_id,
    load_json,
    read_images,
    shared_files,
)
from knet.data.defects import Defect, Defects, is_broken
from knet.data.masks import segmentation_errors
from knet.data.on_error import Scan


def instance_file_defects(
    json_file: str, category_ids: Mapping[int, int] | None = None
) -> list[Defect]:
    """What is wrong with instance annotations; arguments and errors of :func:`scan_coco_instances`.

    The categories are those that the file lists, if none are given.
    """
    categories = read_categories(json_file, panoptic=False)
    if category_ids is None:
        category_ids = instance_metadata(categories)["thing_dataset_id_to_contiguous_id"]
    return [*scan_coco_instances(json_file, "", category_ids).defects]


def scan_coco_instances(
    json_file: str,
    image_root: str,
    category_ids: Mapping[int, int],
    content: dict[str, Any] | None = None,
) -> Scan:
    """Reads the records of a data set in COCO instance format.

    Args:
        json_file: COCO instance annotations.
        image_root: folder of the pictures.
        category_ids: category id → contiguous class index.
        content: of the file, if it has been read already.

    Returns:
        One dict an image, sorted by image id: ``file_name``, ``image_id``, ``height``, ``width``,
        ``annotation_file`` (the JSON, for messages) and ``annotations``, dicts with ``id``,
        ``category_id`` (contiguous), ``segmentation``, ``bbox_mode`` and, if the file has them,
        ``iscrowd``, ``area`` and ``bbox``. Annotations with an error are not among them.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if the file as a whole is not usable.
    """
    content = load_json(json_file) if content is None else content
    defects = Defects(json_file)
    images, broken_ids = read_images(content, defects, sizes=True)
    objects: dict[Any, list[dict[str, Any]]] = {key: [] for key in images}
    seen: set[Any] = set()
    if "annotations" not in content:
        problem = "lacks `annotations`: every image counts as empty"
        defects.add("missing-key", problem, severity="warning")
        content["annotations"] = []
    for position, entry in entries(content, "annotations", defects):
        found = defects.at(_name(entry, position))
        orphaned = found.at(found.record)
        image = find_image(entry, images, broken_ids, orphaned, found.record)
        _check_annotation(entry, image, seen, category_ids, found)
        found += orphaned
        defects += found
        if image is None:
            continue
        if is_broken(found):
            broken_ids.add(image["id"])
        else:
            objects[image["id"]].append(_annotation(entry, category_ids))
    records: list[dict[str, Any]] = []
    broken: set[int] = set()
    for index, image_id in enumerate(sorted(images, key=lambda key: (isinstance(key, str), key))):
        image = image_part(images[image_id], image_root)
        image.update(annotation_file=json_file, annotations=objects[image_id])
        records.append(image)
        if image_id in broken_ids:
            broken.add(index)
    # COCO's evaluation goes by the ids.
    defects += shared_files(records, "file_name", json_file).values()
    return Scan(records, broken, len(broken_ids - set(images)), defects)


def _name(entry: Mapping[str, Any], position: int) -> str:
    name = f"annotation {entry['id']}" if is_id(entry.get("id")) else f"annotations[{position}]"
    return f"image {entry['image_id']}, {name}" if "image_id" in entry else name


def _check_annotation(
    entry: Mapping[str, Any],
    image: Mapping[str, Any] | None,
    seen: set[Any],
    category_ids: Mapping[int, int],
    found: Defects,
) -> None:
    """Adds what is wrong with an annotation, but for its image, and its id to ``seen``."""
    check_keys(entry, ("id", "image_id", "category_id"), found)
    if is_id(entry.get("id")):
        if entry["id"] in seen:
            problem = f"the id {entry['id']} is that of another annotation"
            found.add("duplicate-annotation-id", problem)
        elif entry["id"] == 0:
            found.add("annotation-id-zero", "the id is 0")
        seen.add(entry["id"])
    elif "id" in entry:
        found.add("bad-value", f"id is {entry['id']!r}, not a whole number")
    category = entry.get("category_id")
    if "category_id" in entry and not (is_id(category) and category in category_ids):
        found.add("unknown-category", f"category_id {category!r} is not among `categories`")
    if entry.get("ignore", 0):
        found.add("ignore-flag", f"`ignore` is {entry['ignore']!r}, which nobody evaluates")
    check_values(entry, LABEL_RULES, found)
    if "bbox" in entry and not is_box(entry["bbox"]):
        found.add("bbox-wrong", f"bbox is {entry['bbox']!r}, not four numbers", severity="error")
    lacking = [key for key in ("area", "iscrowd") if key not in entry]
    if lacking:
        problem = f"lacks {' and '.join(lacking)}, which COCO's evaluation reads"
        found.add("missing-key", problem, severity="warning")
    size = None if image is None else (int(image["height"]), int(image["width"]))
    found += segmentation_errors(entry.get("segmentation"), size, found.file, found.record)


def _annotation(entry: Mapping[str, Any], category_ids: Mapping[int, int]) -> dict[str, Any]:
    """An annotation without errors in Detectron2's format."""
    mask = entry["segmentation"]
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        mask = mask_util.frPyObjects(mask, *mask["size"])
    return {
        **{key: entry[key] for key in ("id", "iscrowd", "area", "bbox") if key in entry},
        "category_id": category_ids[entry["category_id"]],
        "segmentation": mask,
        "bbox_mode": BoxMode.XYWH_ABS,
    }
