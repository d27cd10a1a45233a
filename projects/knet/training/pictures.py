"""The same few validation images at every evaluation: photo, truth, prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.evaluator import inference_context
from PIL import Image
from torch import nn

from knet.data.mapper import KNetDatasetMapper
from knet.report.collect import has_truth
from knet.side_by_side import draw_sheet
from knet.visualization import TASKS

__all__ = ["ValidationPictures"]

_LARGEST_WIDTH = 1600  # pixels of a sheet


class ValidationPictures:
    """Draws TEST.PICTURES images of the first test data set, spread evenly over it.

    Args:
        cfg: of the training, with a test data set that is registered.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._records: list[dict[str, Any]] = []

    @torch.no_grad()
    def draw(self, model: nn.Module) -> np.ndarray:
        """One sheet, a row an image.

        Args:
            model: that predicts; not wrapped for several processes, left in the mode it is in.

        Returns:
            (H, W, 3) RGB uint8, W at most 1600.

        Raises:
            DataError: a picture or its labels cannot be read.
        """
        cfg = self._cfg
        name = cfg.DATASETS.TEST[0]
        if not self._records:
            # a data set may be large; what is not drawn is not kept
            records = DatasetCatalog.get(name)
            count = min(cfg.TEST.PICTURES, len(records))
            self._records = [records[k * len(records) // count] for k in range(count)]
            given = [task for task in TASKS if cfg.MODEL.KNET.TEST[f"{task.upper()}_ON"]]
            judged = [task for task in given if has_truth(records, task)]
            self._task = (judged or given)[0]
        mapper = KNetDatasetMapper(cfg, is_train=False)
        rows = []
        for record in self._records:
            with inference_context(model):
                output = model([mapper(record)])[0]
            rows.append(self._row(record, output))
        width = max(row.width for row in rows)
        sheet = Image.new("RGB", (width, sum(row.height for row in rows)), "white")
        top = 0
        for row in rows:
            sheet.paste(row, (0, top))
            top += row.height
        return np.asarray(sheet)

    def _row(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> Image.Image:
        key = TASKS[self._task]
        pixels = draw_sheet(
            record,
            {key: output[key]},
            MetadataCatalog.get(self._cfg.DATASETS.TEST[0]),
            task=self._task,
            max_pixels=self._cfg.INPUT.MAX_PIXELS,
        )
        row = Image.fromarray(pixels)
        if row.width > _LARGEST_WIDTH:
            height = max(1, round(row.height * _LARGEST_WIDTH / row.width))
            row = row.resize((_LARGEST_WIDTH, height), Image.Resampling.LANCZOS)
        return row
