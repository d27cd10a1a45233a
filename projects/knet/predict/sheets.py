"""Pictures of a data set, each as a sheet of photo, ground truth and prediction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from knet.data.images import read_picture, save_image
from knet.predictor import KNetPredictor
from knet.side_by_side import draw_sheet
from knet.visualization import DRAWN_SCORE


def write_sheets(
    predictor: KNetPredictor,
    dataset_name: str,
    output_dir: str,
    images: int | Sequence[int | str] = 8,
    *,
    task: str = "panoptic",
    score_threshold: float = DRAWN_SCORE,
) -> list[str]:
    """Run a model on images of a data set and write one sheet (PNG) for each.

    Args:
        predictor: the model.
        dataset_name: a registered data set.
        output_dir: made if missing; files are ``<image>_<image id>_<task>.png``.
        images: the number of images from the data set's start; or image ids, where a number that
            is no image's id counts as a position in the data set, from 0.
        task: ``panoptic``, ``instance`` or ``semantic``.
        score_threshold: instances with a lower score are not drawn.

    Returns:
        The files' paths.

    Raises:
        ValueError: an image that the data set does not have, or as `draw_sheet`.
    """
    records = _choose(DatasetCatalog.get(dataset_name), images, dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    max_pixels = predictor.cfg.INPUT.MAX_PIXELS
    options = {"task": task, "score_threshold": score_threshold, "max_pixels": max_pixels}
    os.makedirs(output_dir, exist_ok=True)
    paths = []
    for position, record in enumerate(records):
        image = read_picture(record, image_format="RGB", max_pixels=max_pixels)
        sheet = draw_sheet(record, predictor(image), metadata, **options)
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        name = f"{stem}_{record.get('image_id', position)}_{task}.png".replace(os.sep, "_")
        paths.append(os.path.join(output_dir, name))
        save_image(paths[-1], sheet)
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
