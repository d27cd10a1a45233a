"""Sheets that show photo, ground truth and prediction side by side, one row an image.

Both maps go through the same calls of Detectron2's Visualizer, in one fixed colour a class, so
that equal results look equal and the same input gives the same pixels in every run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from detectron2.utils.visualizer import GenericMask
from PIL import Image, ImageDraw, ImageFont

from knet.data.augmentation import build_knet_augmentation
from knet.data.images import MAX_PIXELS, read_picture, save_image
from knet.data.label_png import open_label_png
from knet.data.panoptic_png import read_panoptic_png
from knet.visualizer import DRAWN_SCORE, TASKS, draw_result, enlarge, enlarging_factor

__all__ = ["draw_annotations", "draw_sheet", "write_sheets"]

logger = logging.getLogger(__name__)

_COLUMNS = ("photo", "ground truth", "prediction")
_GAP = 8  # pixels between the tiles of a sheet
_FONT_SIZE = 16


def draw_sheet(
    records: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    metadata: Metadata,
    *,
    task: str = "panoptic",
    score_threshold: float = DRAWN_SCORE,
    min_side: int = 320,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Photo, ground truth and prediction side by side, one row an image.

    Args:
        records: the images' records in Detectron2's standard format. Ground truth is taken from
            ``pan_seg_file_name`` and ``segments_info``, ``annotations`` or ``sem_seg_file_name``;
            an image without any has two columns.
        outputs: for each record the model's output; the key for ``task`` is read
            (``panoptic_seg``, ``instances``, ``sem_seg``), at the photo's size.
        metadata, task, score_threshold, min_side: as for :func:`knet.visualizer.draw_result`.
        max_pixels: a larger photo is refused.

    Returns:
        ``(H, W, 3)`` RGB uint8, with column titles and the names of the files.

    Raises:
        ValueError: unknown task, no image, or an output that lacks the task's key.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; known are {', '.join(TASKS)}.")
    if not records or len(records) != len(outputs):
        raise ValueError(f"Got {len(records)} records and {len(outputs)} outputs.")
    rows = []
    for record, output in zip(records, outputs):
        if TASKS[task] not in output:
            raise ValueError(
                f"The output for '{record['file_name']}' has no '{TASKS[task]}': "
                f"turn on MODEL.KNET.TEST.{task.upper()}_ON."
            )
        image = read_picture(record, image_format="RGB", max_pixels=max_pixels)
        tiles = [(_COLUMNS[0], enlarge(image, enlarging_factor(image, min_side)))]
        truth = _ground_truth(record, task, image.shape[:2])
        for title, result in ((_COLUMNS[1], truth), (_COLUMNS[2], output[TASKS[task]])):
            if result is None:
                continue
            drawn = draw_result(
                image,
                result,
                metadata,
                task=task,
                score_threshold=score_threshold,
                min_side=min_side,
            )
            tiles.append((title, drawn))
        rows.append(_row(tiles, os.path.basename(record["file_name"])))
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [
            np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
            for row in rows
        ]
    )


def draw_annotations(
    record: Mapping[str, Any],
    metadata: Metadata,
    *,
    min_side: int = 320,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Photo and annotations of one record side by side, the richest kind that it has.

    Args:
        record: in Detectron2's standard format, see :func:`draw_sheet`.
        metadata, min_side, max_pixels: as for :func:`draw_sheet`.

    Returns:
        ``(H, W, 3)`` RGB uint8, with column titles and the file's name.

    Raises:
        ValueError: if the record has no annotations.
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
    truth = _ground_truth(record, task, image.shape[:2])
    drawn = draw_result(image, truth, metadata, task=task, min_side=min_side)
    tiles = [("photo", enlarge(image, enlarging_factor(image, min_side))), ("annotations", drawn)]
    return _row(tiles, os.path.basename(record["file_name"]))


def write_sheets(
    model: torch.nn.Module,
    cfg: CfgNode,
    dataset_name: str,
    output_dir: str,
    image_ids_or_num: int | Sequence[int | str] = 8,
    task: str = "panoptic",
    score_threshold: float = DRAWN_SCORE,
) -> list[str]:
    """Run a model on images of a data set and write one sheet (PNG) for each.

    Args:
        model: a Detectron2 model; used in evaluation mode and left as it was.
        cfg: ``INPUT.FORMAT``, ``INPUT.MAX_PIXELS`` and the test sizes are read.
        dataset_name: a registered data set.
        output_dir: made if missing; files are ``<image>_<image id>_<task>.png``.
        image_ids_or_num: the number of images from the data set's start; or image ids, where a
            number that is no image's id counts as a position in the data set, from 0.
        task: ``panoptic``, ``instance`` or ``semantic``.
        score_threshold: instances with a lower score are not drawn.

    Returns:
        The files' paths.

    Raises:
        ValueError: an image that the data set does not have, or see :func:`draw_sheet`.
    """
    records = _choose(DatasetCatalog.get(dataset_name), image_ids_or_num, dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    resize = T.AugmentationList(build_knet_augmentation(cfg, is_train=False))
    max_pixels = cfg.INPUT.MAX_PIXELS
    os.makedirs(output_dir, exist_ok=True)
    paths = []
    was_training = model.training
    model.eval()
    try:
        for position, record in enumerate(records):
            image = read_picture(record, image_format=cfg.INPUT.FORMAT, max_pixels=max_pixels)
            height, width = image.shape[:2]
            augmented = T.AugInput(image)
            resize(augmented)
            tensor = torch.as_tensor(augmented.image.transpose(2, 0, 1).copy())
            with torch.no_grad():
                output = model([{**record, "image": tensor, "height": height, "width": width}])[0]
            sheet = draw_sheet(
                [record],
                [output],
                metadata,
                task=task,
                score_threshold=score_threshold,
                max_pixels=max_pixels,
            )
            stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
            name = f"{stem}_{record.get('image_id', position)}_{task}.png".replace(os.sep, "_")
            paths.append(os.path.join(output_dir, name))
            save_image(paths[-1], sheet)
            logger.info("Wrote %s", paths[-1])
    finally:
        model.train(was_training)
    return paths


def _choose(
    records: list[dict[str, Any]], wanted: int | Sequence[int | str], dataset_name: str
) -> list[dict[str, Any]]:
    if isinstance(wanted, int):
        return records[:wanted]
    by_id = {str(record["image_id"]): record for record in records if "image_id" in record}
    chosen = []
    for key in map(str, wanted):
        if key in by_id:
            chosen.append(by_id[key])
        elif key.isdecimal() and int(key) < len(records):
            chosen.append(records[int(key)])
        else:
            raise ValueError(
                f"Data set '{dataset_name}' has no image with id {key}, "
                f"and {len(records)} images by position."
            )
    return chosen


def _ground_truth(record: Mapping[str, Any], task: str, size: tuple[int, int]) -> Any:
    """The record's ground truth in the form of the model's output, or None if it has none."""
    if task == "instance" and "annotations" in record:
        annotations = record["annotations"]
        truth = Instances(size)
        truth.pred_classes = torch.as_tensor([a["category_id"] for a in annotations]).long()
        truth.pred_masks = torch.zeros(len(annotations), *size, dtype=torch.bool)
        for k, annotation in enumerate(annotations):
            mask = annotation["segmentation"]
            if not isinstance(mask, np.ndarray):  # polygons or RLE
                mask = GenericMask(mask, *size).mask
            truth.pred_masks[k] = torch.as_tensor(mask > 0)
        return truth
    if task == "semantic" and "sem_seg_file_name" in record:
        return open_label_png(record["sem_seg_file_name"], size=size)[1]
    if "pan_seg_file_name" not in record:
        return None

    path = record["pan_seg_file_name"]
    ids = read_panoptic_png(path, size=size).astype(np.int64)
    segments = record["segments_info"]
    if task == "panoptic":
        return ids, segments
    if task == "instance":
        things = [segment for segment in segments if segment.get("isthing", True)]
        truth = Instances(size)
        truth.pred_classes = torch.as_tensor([s["category_id"] for s in things]).long()
        masks = [torch.as_tensor(ids == s["id"]) for s in things]
        truth.pred_masks = torch.stack(masks) if masks else BitMasks(torch.zeros(0, *size)).tensor
        return truth
    labels = np.full(size, 255, dtype=np.int64)  # no class: not drawn
    for segment in segments:
        labels[ids == segment["id"]] = segment["category_id"]
    return labels


def _row(tiles: Sequence[tuple[str, np.ndarray]], file_name: str) -> np.ndarray:
    height, width = tiles[0][1].shape[:2]
    font = ImageFont.load_default(_FONT_SIZE)
    title = _FONT_SIZE + _GAP
    size = (len(tiles) * (width + _GAP) + _GAP, height + title + 2 * _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for k, (text, tile) in enumerate(tiles):
        left = _GAP + k * (width + _GAP)
        if k == 0:
            text = f"{text}: {file_name}"
        while draw.textlength(text, font) > width and len(text) > 4:
            text = text[:-4] + "..."
        draw.text((left, _GAP // 2), text, fill="black", font=font)
        sheet.paste(Image.fromarray(tile[:height, :width]), (left, title + _GAP // 2))
    return np.asarray(sheet)
