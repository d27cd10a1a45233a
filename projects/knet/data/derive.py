"""Instance and semantic annotations from COCO panoptic annotations.

People who label panoptically have one PNG an image and one JSON. Detectron2's instance evaluator
wants an instances JSON, its semantic evaluator label maps: both follow from what is there.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from .panoptic_png import ids_to_rows, read_panoptic_png

__all__ = ["panoptic_to_instances", "panoptic_to_semantic"]

logger = logging.getLogger(__name__)


def panoptic_to_instances(panoptic_json: str, panoptic_root: str, out_json: str) -> int:
    """Writes a COCO instances JSON of the thing segments.

    Args:
        panoptic_json: COCO panoptic annotations.
        panoptic_root: folder of the PNGs which that file names.
        out_json: where to write; its folder must exist. Written whole or not at all.

    Returns:
        The number of instances written. Each has a compressed RLE, ``area`` (pixels), ``bbox``
        (x, y, width, height in pixels) counted from the PNG, and the segment's ``iscrowd``.
        ``categories`` holds the thing categories only.

    Raises:
        FileNotFoundError: if the JSON or a PNG is missing.
        ValueError: naming file and record, if both disagree: other size, a segment in one only,
            an unknown category.
    """
    content = _load(panoptic_json)
    things = {c["id"] for c in content["categories"] if c["isthing"]}
    annotations: list[dict[str, Any]] = []
    for record, rows in _iterate(content, panoptic_json, panoptic_root):
        for row, segment in enumerate(record["segments_info"], start=1):
            if segment["category_id"] not in things:
                continue
            mask = np.asfortranarray(rows == row, dtype=np.uint8)
            rle = mask_util.encode(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # from 1: COCO's evaluation takes 0 for "no match"
                    "image_id": record["image_id"],
                    "category_id": segment["category_id"],
                    "iscrowd": int(segment.get("iscrowd", 0)),
                    "area": int(mask_util.area(rle)),
                    "bbox": [float(v) for v in mask_util.toBbox(rle)],
                    "segmentation": {
                        "size": [int(v) for v in rle["size"]],
                        "counts": rle["counts"].decode("ascii"),
                    },
                }
            )
    result: dict[str, Any] = {key: content[key] for key in ("info", "licenses") if key in content}
    result["images"] = content["images"]
    result["categories"] = [c for c in content["categories"] if c["isthing"]]
    result["annotations"] = annotations
    _write_json(result, Path(out_json))
    return len(annotations)


def panoptic_to_semantic(
    panoptic_json: str,
    panoptic_root: str,
    out_root: str,
    *,
    class_ids: Mapping[int, int],
    ignore_label: int = 255,
) -> int:
    """Writes one semantic label PNG an image, under the name of its panoptic PNG.

    Args:
        panoptic_json: COCO panoptic annotations.
        panoptic_root: folder of the PNGs which that file names.
        out_root: folder to write to; made if missing.
        class_ids: category id → label, 0 to 254. Categories left out become ``ignore_label``.
        ignore_label: label of void pixels.

    Returns:
        The number of label maps written: (H, W) uint8.

    Raises:
        FileNotFoundError, ValueError: as :func:`panoptic_to_instances`; ValueError too for a
            label that does not fit or equals ``ignore_label``.
    """
    for category, label in class_ids.items():
        if not 0 <= label <= 255 or label == ignore_label:
            raise ValueError(
                f"label {label} of category {category} must be in 0 … 255 and not {ignore_label}"
            )
    content = _load(panoptic_json)
    folder = Path(out_root)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for record, rows in _iterate(content, panoptic_json, panoptic_root):
        labels = [class_ids.get(s["category_id"], ignore_label) for s in record["segments_info"]]
        lookup = np.array([ignore_label, *labels], np.uint8)
        Image.fromarray(lookup[rows]).save(folder / record["file_name"])
        count += 1
    return count


def _iterate(
    content: dict[str, Any], panoptic_json: str, panoptic_root: str
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yields each annotation record with its checked map of segment rows (see `ids_to_rows`)."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    total, reported = len(content["annotations"]), time.monotonic()
    for number, record in enumerate(content["annotations"], start=1):
        where = f"{panoptic_json}: annotation of image {record['image_id']!r}"
        if record["image_id"] not in sizes:
            raise ValueError(f"{where}: no image with this id in `images`")
        path = str(Path(panoptic_root) / record["file_name"])
        ids = read_panoptic_png(path)
        if ids.shape != sizes[record["image_id"]]:
            raise ValueError(
                f"{path} is {ids.shape[1]}x{ids.shape[0]} (width x height), but its image is "
                f"{sizes[record['image_id']][1]}x{sizes[record['image_id']][0]} in {panoptic_json}"
            )
        rows = ids_to_rows(ids, record["segments_info"], path)
        areas = np.bincount(rows.ravel(), minlength=len(record["segments_info"]) + 1)[1:]
        for segment, area in zip(record["segments_info"], areas):
            if segment["category_id"] not in categories:
                raise ValueError(
                    f"{where}: segment {segment['id']} has unknown category "
                    f"{segment['category_id']}"
                )
            if area == 0:
                raise ValueError(f"{where}: segment {segment['id']} has no pixel in {path}")
        yield record, rows
        if time.monotonic() - reported > 5:
            reported = time.monotonic()
            logger.info("%s: %d of %d label maps", Path(panoptic_json).name, number, total)


def _load(panoptic_json: str) -> dict[str, Any]:
    path = Path(panoptic_json)
    if not path.is_file():
        raise FileNotFoundError(f"no panoptic annotations at {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    missing = {"images", "annotations", "categories"} - set(content)
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}: not COCO panoptic annotations")
    return content


def _write_json(content: dict[str, Any], path: Path) -> None:
    # Renamed when complete: a stopped run leaves no half file that a later one would read.
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)
