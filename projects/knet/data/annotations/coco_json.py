"""Reads COCO instance annotations, with every defect of the file found and named.

The records are those of Detectron2's ``load_coco_json`` (which stops at the first defect, often
with a bare KeyError, and drops some polygons), with each annotation's ``id`` and ``area`` and the
path of the file added, and keypoints left out. Of masks only the form is looked at: see
:mod:`knet.data.annotations.segmentations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from knet.data.annotations.coco_file import (
    entries,
    find_image,
    image_part,
    is_box,
    is_id,
    is_number,
    load_json,
    missing_keys,
    read_images,
    shared_files,
)
from knet.data.annotations.segmentations import form_defect, rle_defect, segmentation_errors
from knet.data.defects import Defect, describe, make_defect
from knet.data.on_error import Scan
from knet.data.registration.categories import instance_metadata, read_categories

__all__ = ["instance_file_defects", "scan_coco_instances"]


def instance_file_defects(
    json_file: str, category_ids: Mapping[int, int] | None = None
) -> list[Defect]:
    """What is wrong with instance annotations, masks included, without a look at the pictures.

    Args:
        json_file: COCO instance annotations.
        category_ids: category id → contiguous class index; None: those that the file lists.

    Raises:
        FileNotFoundError, DataError: as :func:`scan_coco_instances`.
    """
    categories = read_categories(json_file, panoptic=False)
    if category_ids is None:
        category_ids = instance_metadata(categories)["thing_dataset_id_to_contiguous_id"]
    scan = scan_coco_instances(json_file, "", category_ids)
    found = list(scan.defects)
    for record in scan.records:
        size = record["height"], record["width"]
        for annotation in record["annotations"]:
            name = describe(record, annotation["id"])
            found += segmentation_errors(annotation["segmentation"], size, json_file, name)
    return found


def scan_coco_instances(json_file: str, image_root: str, category_ids: Mapping[int, int]) -> Scan:
    """Reads the records of a data set in COCO instance format.

    Args:
        json_file: COCO instance annotations.
        image_root: folder of the pictures.
        category_ids: category id → contiguous class index.

    Returns:
        One dict an image, sorted by image id: ``file_name``, ``image_id``, ``height``, ``width``,
        ``annotation_file`` (the JSON, for messages) and ``annotations``, dicts with ``id``,
        ``category_id`` (contiguous), ``segmentation``, ``bbox_mode`` and, if the file has them,
        ``iscrowd``, ``area`` and ``bbox``. Annotations with an error are not among them.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if the file as a whole is not usable.
    """
    content = load_json(json_file)
    defects: list[Defect] = []
    images, broken_ids = read_images(content, json_file, defects, sizes=True)
    objects: dict[Any, list[dict[str, Any]]] = {key: [] for key in images}
    seen: set[Any] = set()
    if "annotations" not in content:
        problem = "lacks `annotations`: every image counts as empty"
        defects.append(make_defect("missing-key", json_file, "", problem, severity="warning"))
    for position, entry in entries(content, "annotations", json_file, defects, needed=False):
        record = _name(entry, position)
        image, orphaned = find_image(entry, images, broken_ids, json_file, record)
        found = _annotation_defects(entry, image, seen, category_ids, json_file, record)
        found += orphaned
        defects.extend(found)
        if any(defect.severity == "error" for defect in found):
            if image is not None:
                broken_ids.add(image["id"])
        elif image is not None:
            objects[image["id"]].append(_annotation(entry, category_ids))
    scan = Scan(defects=defects, lost=len(broken_ids - set(images)))
    for index, image_id in enumerate(sorted(images, key=lambda key: (isinstance(key, str), key))):
        image = image_part(images[image_id], image_root)
        image.update(annotation_file=json_file, annotations=objects[image_id])
        scan.records.append(image)
        if image_id in broken_ids:
            scan.broken.add(index)
    # COCO's evaluation goes by the ids.
    scan.defects += shared_files(scan.records, "file_name", json_file).values()
    return scan


def _name(entry: Mapping[str, Any], position: int) -> str:
    name = f"annotation {entry['id']}" if is_id(entry.get("id")) else f"annotations[{position}]"
    return f"image {entry['image_id']}, {name}" if "image_id" in entry else name


def _annotation_defects(
    entry: Mapping[str, Any],
    image: Mapping[str, Any] | None,
    seen: set[Any],
    category_ids: Mapping[int, int],
    path: str,
    record: str,
) -> list[Defect]:
    """What is wrong with an annotation, but for its image; adds its id to ``seen``."""
    found = missing_keys(entry, ("id", "image_id", "category_id"), path, record)

    def add(kind: str, problem: str) -> None:
        found.append(make_defect(kind, path, record, problem))

    if is_id(entry.get("id")):
        if entry["id"] in seen:
            add("duplicate-annotation-id", f"the id {entry['id']} is that of another annotation")
        elif entry["id"] == 0:
            add("annotation-id-zero", "the id is 0")
        seen.add(entry["id"])
    elif "id" in entry:
        add("bad-value", f"id is {entry['id']!r}, not a whole number")
    category = entry.get("category_id")
    if "category_id" in entry and not (is_id(category) and category in category_ids):
        add("unknown-category", f"category_id {category!r} is not among `categories`")
    if entry.get("ignore", 0):
        add("ignore-flag", f"`ignore` is {entry['ignore']!r}, which nobody evaluates")
    if entry.get("iscrowd", 0) not in (0, 1):
        add("bad-value", f"iscrowd is {entry['iscrowd']!r}, not 0 or 1")
    if not is_number(entry.get("area", 0)):
        add("bad-value", f"area is {entry['area']!r}, not a number of pixels")
    if "bbox" in entry and not is_box(entry["bbox"]):
        problem = f"bbox is {entry['bbox']!r}, not four numbers"
        found.append(make_defect("bbox-wrong", path, record, problem, severity="error"))
    lacking = [key for key in ("area", "iscrowd") if key not in entry]
    if lacking:
        problem = f"lacks {' and '.join(lacking)}, which COCO's evaluation reads"
        found.append(make_defect("missing-key", path, record, problem, severity="warning"))
    size = None if image is None else (int(image["height"]), int(image["width"]))
    defect = form_defect(entry.get("segmentation"), size, path, record)
    if defect is None and _is_plain_rle(entry.get("segmentation")):
        defect = rle_defect(entry["segmentation"], path, record)  # before it is compressed
    if defect is not None:
        found.append(defect)
    return found


def _is_plain_rle(segmentation: Any) -> bool:
    return isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list)


def _annotation(entry: Mapping[str, Any], category_ids: Mapping[int, int]) -> dict[str, Any]:
    """An annotation without errors in Detectron2's format."""
    segmentation = entry["segmentation"]
    if _is_plain_rle(segmentation):
        segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
    return {
        **{key: entry[key] for key in ("id", "iscrowd", "area", "bbox") if key in entry},
        "category_id": category_ids[entry["category_id"]],
        "segmentation": segmentation,
        "bbox_mode": BoxMode.XYWH_ABS,
    }
