"""Instance and semantic annotations from COCO panoptic annotations.

People who label panoptically have one PNG an image and one JSON. Detectron2's instance evaluator
wants an instances JSON, its semantic evaluator label maps: both follow from what is there.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_util

from knet.data.categories import panoptic_metadata, read_categories
from knet.data.coco_file import load_json
from knet.data.coco_panoptic import scan_coco_panoptic
from knet.data.defects import describe, failure, raise_first
from knet.data.label_png import check_label_size, save_labels
from knet.data.panoptic_png import ids_to_rows, read_panoptic_png
from knet.files import write_json
from knet.modeling.targets import IGNORE_LABEL

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
        Segments without a pixel are left out; ``categories`` holds the thing categories only.

    Raises:
        FileNotFoundError: if the JSON or a PNG is missing.
        DataError: naming file and record, for every error that training stops at too: another
            size, a segment that is in the PNG only, an unknown category …
    """
    source = read_panoptic(panoptic_json, panoptic_root)
    annotations: list[dict[str, Any]] = []
    sizes: dict[Any, dict[str, int]] = {}
    for record, rows in _iterate(source):
        sizes[record["image_id"]] = {"height": rows.shape[0], "width": rows.shape[1]}
        for row, segment in enumerate(record["segments_info"], start=1):
            if not segment["isthing"]:
                continue
            rle = mask_util.encode(np.asfortranarray(rows == row, dtype=np.uint8))
            area = int(mask_util.area(rle))
            if not area:  # training leaves it out too
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,  # from 1: COCO's evaluation takes 0 for "no match"
                    "image_id": record["image_id"],
                    "category_id": source.category_ids[segment["category_id"]],
                    "iscrowd": int(segment["iscrowd"]),
                    "area": area,
                    "bbox": [float(v) for v in mask_util.toBbox(rle)],
                    "segmentation": {
                        "size": [int(v) for v in rle["size"]],
                        "counts": rle["counts"].decode("ascii"),
                    },
                }
            )
    content = source.content
    result: dict[str, Any] = {key: content[key] for key in ("info", "licenses") if key in content}
    result["images"] = [{**image, **sizes.get(image["id"], {})} for image in content["images"]]
    result["categories"] = [c for c in content["categories"] if c["isthing"]]
    result["annotations"] = annotations
    write_json(out_json, result)
    return len(annotations)


def panoptic_to_semantic(
    panoptic_json: str,
    panoptic_root: str,
    out_root: str,
    *,
    class_ids: Mapping[int, int],
    ignore_label: int = IGNORE_LABEL,
) -> int:
    """Writes one semantic label PNG an image, under the relative path of its panoptic PNG.

    Args:
        panoptic_json: COCO panoptic annotations.
        panoptic_root: folder of the PNGs which that file names.
        out_root: folder to write to; made if missing.
        class_ids: category id → label, 0 to 254. Categories left out become ``ignore_label``.
        ignore_label: label of void pixels.

    Returns:
        The number of label maps written: (H, W) uint8.

    Raises:
        FileNotFoundError, DataError: as :func:`panoptic_to_instances`; ValueError for a label that
            does not fit or equals ``ignore_label``.
    """
    for category, label in class_ids.items():
        if not 0 <= label <= 255 or label == ignore_label:
            raise ValueError(
                f"label {label} of category {category} must be in 0 … 255 and not {ignore_label}"
            )
    source = read_panoptic(panoptic_json, panoptic_root)
    folder = Path(out_root)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for record, rows in _iterate(source):
        categories = [source.category_ids[s["category_id"]] for s in record["segments_info"]]
        labels = [class_ids.get(category, ignore_label) for category in categories]
        lookup = np.array([ignore_label, *labels], np.uint8)
        save_labels(folder / _below(panoptic_root, record), lookup[rows])
        count += 1
    return count


class PanopticSource(NamedTuple):
    """Panoptic annotations without an error."""

    path: str
    content: dict[str, Any]
    records: Sequence[dict[str, Any]]  # as training reads them
    category_ids: dict[int, int]  # contiguous class → category id


def read_panoptic(panoptic_json: str, panoptic_root: str) -> PanopticSource:
    """What training reads too: whatever trains can be evaluated.

    Raises:
        FileNotFoundError, DataError: as :func:`panoptic_to_instances`, for what the JSON tells.
    """
    meta = panoptic_metadata(read_categories(panoptic_json, panoptic=True))
    content = load_json(panoptic_json)
    scan = scan_coco_panoptic(
        panoptic_json=panoptic_json,
        image_root="",  # the pictures are not needed
        panoptic_root=panoptic_root,
        sem_seg_root=None,
        meta=meta,
        content=content,
    )
    raise_first(scan.defects)
    class_ids = meta["stuff_dataset_id_to_contiguous_id"]
    category_ids = {index: category for category, index in class_ids.items()}
    return PanopticSource(panoptic_json, content, scan.records, category_ids)


def _iterate(source: PanopticSource) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yields each record with its map of segment rows (see `ids_to_rows`).

    Segments without a pixel are in the record, but nowhere in the map.
    """
    name, reported = Path(source.path).name, time.monotonic()
    for number, record in enumerate(source.records, start=1):
        path, where = record["pan_seg_file_name"], describe(record)
        size = None  # the PNG's own
        if "height" in record and "width" in record:
            size = (record["height"], record["width"])
        ids = read_panoptic_png(path, where, size, f"(as of {source.path})")
        if size is not None:
            check_label_size(ids, size, path, where, f"(as of {source.path})")
        yield record, ids_to_rows(ids, record["segments_info"], path, where)
        if time.monotonic() - reported > 5:
            reported = time.monotonic()
            logger.info("%s: %d of %d label maps", name, number, len(source.records))


def _below(root: str, record: dict[str, Any]) -> str:
    """The path of a record's PNG from the folder of all on; DataError if it leads out of it."""
    path = os.path.relpath(record["pan_seg_file_name"], root)
    if path.split(os.sep)[0] == os.pardir:
        problem = f"its PNG is not below {root}"
        mend = "give file_name relative to the folder of the PNGs"
        name = describe(record)
        raise failure("bad-value", record["pan_seg_file_name"], name, problem, mend=mend)
    return path
