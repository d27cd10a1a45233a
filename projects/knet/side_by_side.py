"""A photo, its ground truth and the prediction side by side, as `visualization` draws each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont

from knet.data.images import MAX_PIXELS, read_picture
from knet.data.label_png import open_label_png
from knet.data.masks import encode_segmentation
from knet.data.panoptic_png import read_panoptic_png
from knet.modeling.targets import IGNORE_LABEL
from knet.visualization import (
    DRAWN_SCORE,
    MIN_SIDE,
    TASKS,
    draw_result,
    enlarge,
    require_task,
    whole_factor,
)

__all__ = ["draw_sheet"]

_GAP = 8  # pixels between the pictures
_FONT_SIZE = 16


def draw_sheet(
    record: Mapping[str, Any],
    output: Mapping[str, Any],
    metadata: Metadata,
    *,
    task: str = "panoptic",
    score_threshold: float = DRAWN_SCORE,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Photo, ground truth and prediction of one image side by side.

    Args:
        record: of the image, in Detectron2's standard format. Ground truth is taken from
            ``pan_seg_file_name`` and ``segments_info``, ``annotations`` or ``sem_seg_file_name``;
            without any there are two columns.
        output: the model's; the key for ``task`` is read (``panoptic_seg``, ``instances``,
            ``sem_seg``), at the photo's size.
        metadata, task, score_threshold: as for :func:`draw_result`.
        max_pixels: a larger photo is refused.

    Returns:
        ``(H, W, 3)`` RGB uint8, with column titles and the file's name.

    Raises:
        ValueError: unknown task, or an output that lacks the task's key.
    """
    require_task(task)
    if TASKS[task] not in output:
        raise ValueError(
            f"The output for '{record['file_name']}' has no '{TASKS[task]}': "
            f"turn on MODEL.KNET.TEST.{task.upper()}_ON."
        )
    image = read_picture(record, image_format="RGB", max_pixels=max_pixels)
    shown = {"ground truth": _ground_truth(record, task, image.shape[:2])}
    shown["prediction"] = output[TASKS[task]]
    return _draw_row(record, image, shown, metadata, task=task, score_threshold=score_threshold)


def draw_annotations(
    record: Mapping[str, Any], metadata: Metadata, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Photo and annotations of one record side by side, the richest kind that it has.

    Args, Returns: as of :func:`draw_sheet`.

    Raises:
        ValueError: the record has no annotations.
    """
    keys = {
        "pan_seg_file_name": "panoptic",
        "annotations": "instance",
        "sem_seg_file_name": "semantic",
    }
    task = next((task for key, task in keys.items() if key in record), None)
    if task is None:
        raise ValueError(f"The record of '{record['file_name']}' has no annotations to draw.")
    image = read_picture(record, image_format="RGB", max_pixels=max_pixels)
    shown = {"annotations": _ground_truth(record, task, image.shape[:2])}
    return _draw_row(record, image, shown, metadata, task=task)


def _ground_truth(record: Mapping[str, Any], task: str, size: tuple[int, int]) -> Any:
    """The record's ground truth in the form of the model's output, or None if it has none."""
    if task == "instance" and "annotations" in record:
        annotations = record["annotations"]
        masks = [
            mask_util.decode(encode_segmentation(a["segmentation"], size)) for a in annotations
        ]
        return _instances([a["category_id"] for a in annotations], masks, size)
    if task == "semantic" and "sem_seg_file_name" in record:
        return open_label_png(record["sem_seg_file_name"], size=size)[1]
    if "pan_seg_file_name" not in record:
        return None
    ids = read_panoptic_png(record["pan_seg_file_name"], size=size).astype(np.int64)
    segments = record["segments_info"]
    if task == "panoptic":
        return ids, segments
    if task == "instance":
        things = [segment for segment in segments if segment.get("isthing", True)]
        return _instances(
            [s["category_id"] for s in things], [ids == s["id"] for s in things], size
        )
    labels = np.full(size, IGNORE_LABEL, dtype=np.int64)  # is not drawn
    for segment in segments:
        labels[ids == segment["id"]] = segment["category_id"]
    return labels


def _instances(labels: list[int], masks: list[np.ndarray], size: tuple[int, int]) -> Instances:
    stacked = torch.as_tensor(np.array(masks, bool).reshape(-1, *size))
    return Instances(size, pred_classes=torch.tensor(labels).long(), pred_masks=stacked)


def _draw_row(
    record: Mapping[str, Any],
    image: np.ndarray,
    results: Mapping[str, Any],
    metadata: Metadata,
    **options: Any,
) -> np.ndarray:
    """The photo and results of it (None is left out), each under its title."""
    tiles = {
        f"photo: {os.path.basename(record['file_name'])}": enlarge(
            image, whole_factor(image, MIN_SIDE)
        )
    }
    for title, result in results.items():
        if result is not None:
            tiles[title] = draw_result(image, result, metadata, **options)
    height, width = next(iter(tiles.values())).shape[:2]
    font = ImageFont.load_default(_FONT_SIZE)
    top = _FONT_SIZE + _GAP + _GAP // 2
    size = (len(tiles) * (width + _GAP) + _GAP, height + top + _GAP + _GAP // 2)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for k, (title, tile) in enumerate(tiles.items()):
        left = _GAP + k * (width + _GAP)
        while draw.textlength(title, font) > width and len(title) > 4:
            title = title[:-4] + "..."
        draw.text((left, _GAP // 2), title, fill="black", font=font)
        sheet.paste(Image.fromarray(tile[:height, :width]), (left, top))
    return np.asarray(sheet)
