"""Detectron2's evaluators where theirs cannot judge every data set."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from knet.data.labels import read_label_png

__all__ = ["Evaluators", "InstanceEvaluator", "PanopticEvaluator", "SemanticEvaluator"]

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


class PanopticEvaluator(COCOPanopticEvaluator):
    """Detectron2's reports a quality of 0 for things or stuff where the data set has none."""

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        super().__init__(dataset_name, output_dir)
        metadata = MetadataCatalog.get(dataset_name)
        things = set(metadata.thing_dataset_id_to_contiguous_id)
        stuff = set(metadata.stuff_dataset_id_to_contiguous_id) - things
        self._absent = [kind for kind, ids in (("_th", things), ("_st", stuff)) if not ids]

    def evaluate(self) -> Any:
        """As the original, without the results of a kind that has no class."""
        results = super().evaluate()
        for metrics in (results or {}).values():
            for name in [name for name in metrics if name.endswith(tuple(self._absent))]:
                del metrics[name]
        return results


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's gives NaN to a model that finds nothing; here its AP is 0.

    Annotations may lack `area` and `iscrowd`, which COCO's evaluation reads: the area is counted
    from the mask, and nothing is a crowd unless it says so.
    """

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        for annotation in self._coco_api.dataset.get("annotations", ()):
            annotation.setdefault("iscrowd", 0)
            if "area" not in annotation:
                annotation["area"] = float(mask_util.area(self._coco_api.annToRLE(annotation)))

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> Mapping[str, float]:
        if coco_eval is None:
            nothing = COCO()
            nothing.dataset = {**self._coco_api.dataset, "annotations": []}
            nothing.createIndex()
            coco_eval = COCOevalMaxDets(self._coco_api, nothing, iou_type)
            coco_eval.params.maxDets = self._max_dets_per_image
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


class SemanticEvaluator(SemSegEvaluator):
    """Detectron2's counts labels of unknown classes as other ones; here they are errors."""

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
        super().process(inputs, outputs)

    def evaluate(self) -> Any:
        """As the original; all NaN if no pixel has a label."""
        with np.errstate(invalid="ignore"):
            results = super().evaluate()
        for metrics in (results or {}).values():
            if math.isnan(metrics["pACC"]):
                metrics["fwIoU"] = math.nan  # an empty sum there
        return results
