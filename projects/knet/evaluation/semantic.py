"""Semantic scores of a model's results, with labels that are checked."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import SemSegEvaluator

from knet.data.images import open_image, pillow_limit
from knet.data.label_png import read_label_png
from knet.errors import first_of

from .spool import Spool

__all__ = ["SemanticEvaluator"]

logger = logging.getLogger(__name__)


class SemanticEvaluator(SemSegEvaluator):
    """Detectron2's ``SemSegEvaluator``, with the same results and ``sem_seg_predictions.json``.

    Detectron2's counts labels of unknown classes as other ones; here they are errors. It keeps
    the run lengths of all predicted masks in memory; here they are written to disk image by
    image, and only if there is an output folder. In memory are the confusion matrix and the names
    of the label PNGs.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        super().__init__(dataset_name, output_dir=output_dir)
        self.sem_seg_loading_fn = _load_labels  # v0.6 has none, and opens the file itself

    def reset(self) -> None:
        """Forget all predictions."""
        super().reset()
        self._spool = Spool(self._output_dir) if self._output_dir else None

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
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
        with pillow_limit(None):  # labels may be as large as their picture
            super().process(inputs, outputs)

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[Any]:
        """The original's records of an image go to disk; it gets none to keep."""
        if self._spool is not None:
            for record in super().encode_json_sem_seg(sem_seg, input_file_name):
                self._spool.add(json.dumps(record))
        return []

    def evaluate(self) -> Any:
        """As the original; all NaN if no pixel has a label.

        The log names classes without ground truth: mIoU is a mean over the others.
        """
        with np.errstate(invalid="ignore"):
            results = super().evaluate()
        if self._spool is not None:
            self._spool.write(os.path.join(self._output_dir, "sem_seg_predictions.json"))
        if results:
            self._warn_of_absent_classes()
            if math.isnan(results["sem_seg"]["pACC"]):
                results["sem_seg"]["fwIoU"] = math.nan  # an empty sum there
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


def _load_labels(filename: str, copy: bool = False, dtype: Any = None) -> np.ndarray:
    """As newer Detectron2's own default, whose ``copy=False`` is an error from numpy 2 on."""
    with open_image(filename, max_pixels=None) as image:  # it has its picture's size by now
        return np.array(image, dtype=dtype)
