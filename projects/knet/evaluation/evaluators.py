"""Detectron2's group of evaluators and its semantic one, made to fit any data set."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluators, SemSegEvaluator
from PIL import Image

from knet.data.label_png import read_label_png
from knet.errors import first_of

from .spool import Spool

__all__ = ["Evaluators", "SemanticEvaluator"]

logger = logging.getLogger(__name__)


class Evaluators(DatasetEvaluators):
    """Several evaluators; what the data set cannot judge (NaN) is left out of the results.

    Such are the AP of sizes that no object has, or the IoU of classes that no pixel has.
    """

    def evaluate(self) -> Any:
        """As the original: the metrics a task, in percent; empty but in the main process."""
        results = super().evaluate()
        absent = [
            f"{task}/{name}"
            for task, metrics in results.items()
            for name, value in metrics.items()
            if math.isnan(value)
        ]
        if absent:
            logger.info("No ground truth for %s: not reported", ", ".join(absent))
        return type(results)(
            (task, {name: value for name, value in metrics.items() if not math.isnan(value)})
            for task, metrics in results.items()
        )


class SemanticEvaluator(SemSegEvaluator):
    """Detectron2's ``SemSegEvaluator``, with the same results and ``sem_seg_predictions.json``.

    Detectron2's counts labels of unknown classes as other ones; here they are errors. It keeps
    the run lengths of all predicted masks in memory; here they are written to disk image by
    image, and only if there is an output folder. In memory are the confusion matrix and the names
    of the label PNGs.
    """

    def reset(self) -> None:
        """Forget all predictions."""
        super().reset()
        self._spool = Spool(self._output_dir) if self._output_dir else None

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """As the original.

        Raises:
            ValueError: naming the label PNG and what is wrong with it.
        """
        for record, output in zip(inputs, outputs):
            read_label_png(
                self.input_file_to_gt_file[record["file_name"]],
                tuple(output["sem_seg"].shape[-2:]),
                self._num_classes,
                self._ignore_label,
            )
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None  # labels may be as large as their picture
        try:
            super().process(inputs, outputs)
        finally:
            Image.MAX_IMAGE_PIXELS = limit

    def evaluate(self) -> Any:
        """As the original; all NaN if no pixel has a label.

        The log names classes without ground truth: mIoU is a mean over the others.
        """
        with np.errstate(invalid="ignore"):
            results = super().evaluate()
        if results:
            self._warn_of_absent_classes()
        if self._spool is not None:
            self._spool.write(os.path.join(self._output_dir, "sem_seg_predictions.json"))
        for metrics in (results or {}).values():
            if math.isnan(metrics["pACC"]):
                metrics["fwIoU"] = math.nan  # an empty sum there
        return results

    def _warn_of_absent_classes(self) -> None:
        pixels = self._conf_matrix[:-1].sum(axis=0)  # of each label, the last being the ignored one
        absent = [k for k in range(self._num_classes) if not pixels[k]]
        if not absent:
            return
        names = [self._class_names[k] for k in absent]
        found = [self._class_names[k] for k in absent if self._conf_matrix[k, :-1].any()]
        text = f"mIoU is that of {self._num_classes - len(absent)} of {self._num_classes} classes: "
        text += f"no label of '{self._dataset_name}' shows {first_of(names)}"
        if found:
            text += f"; predicted all the same, so with an IoU of 0 in the mean: {first_of(found)}"
        if pixels[-1]:
            share = 100 * pixels[-1] / pixels.sum()
            text += f"; {share:.1f} % of the pixels are ignored (label {self._ignore_label})"
            if absent == list(range(1, self._num_classes)):
                text += ": if they are the foreground, `python datasets/prepare_label_pngs.py IN "
                text += f"OUT --map {self._ignore_label}=1` makes them class 1"
        logger.warning("%s", text)

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[Any]:
        """The original's records of an image go to disk; it gets none to keep."""
        if self._spool is not None:
            for record in super().encode_json_sem_seg(sem_seg, input_file_name):
                self._spool.add(json.dumps(record))
        return []
