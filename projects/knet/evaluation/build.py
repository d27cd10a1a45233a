"""The evaluators of a data set, by its ``evaluator_type`` and by the results that are asked for."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from detectron2.utils.file_io import PathManager
from PIL import Image

from knet.data.labels import read_label_png

from .derived import instance_dataset, semantic_dataset

__all__ = ["build_evaluator"]

Build = Callable[[str, "str | None"], DatasetEvaluator]


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluators:
    """Detectron2's evaluators for the results that the model gives on a data set.

    Args:
        cfg: ``MODEL.KNET.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON`` choose among the evaluators
            that fit the data set.
        dataset_name: a registered data set. Its metadata's ``evaluator_type`` is one of
            ``coco``, ``coco_panoptic_seg``, ``ade20k_panoptic_seg``, ``sem_seg``,
            ``cityscapes_panoptic_seg``, ``cityscapes_instance`` and ``cityscapes_sem_seg``.
        output_folder: for the evaluators' own files, and for ground truth that has to be derived
            (see :mod:`knet.evaluation.derived`). All processes of a run must call this function.

    Returns:
        Evaluators whose ``evaluate()`` gives ``panoptic_seg`` (``PQ`` …), ``segm`` (``AP`` …) and
        ``sem_seg`` (``mIoU`` …), each in percent, as far as they are on and fit the data set.

    Raises:
        ValueError: unknown ``evaluator_type``, or no result is on that the data set can judge.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in _EVALUATORS:
        raise ValueError(
            f"Data set '{dataset_name}' has evaluator_type {evaluator_type!r}; "
            f"known are {', '.join(sorted(_EVALUATORS))}."
        )
    builders = _EVALUATORS[evaluator_type]
    test = cfg.MODEL.KNET.TEST
    evaluators = [
        build(dataset_name, output_folder) for switch, build in builders.items() if test[switch]
    ]
    if not evaluators:
        needed = " or ".join(f"MODEL.KNET.TEST.{switch}" for switch in builders)
        raise ValueError(
            f"Nothing to evaluate on data set '{dataset_name}' (evaluator_type "
            f"'{evaluator_type}'): turn on {needed}."
        )
    return DatasetEvaluators(evaluators)


def _coco_panoptic(dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    return COCOPanopticEvaluator(dataset_name, output_folder)


def _coco_instances(dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    return COCOEvaluator(
        dataset_name,
        tasks=("segm",),
        output_dir=output_folder,
        # A Detectron2 without compiled operators has pycocotools' implementation only.
        use_fast_impl=importlib.util.find_spec("detectron2._C") is not None,
    )


def _panoptic_to_instances(dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    return _coco_instances(instance_dataset(dataset_name, output_folder), output_folder)


class CheckedSemSegEvaluator(SemSegEvaluator):
    """Detectron2's counts labels of unknown classes as other ones; here they are errors."""

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        for record, output in zip(inputs, outputs):
            read_label_png(
                self.input_file_to_gt_file[record["file_name"]],
                tuple(output["sem_seg"].shape[-2:]),
                self._num_classes,
                self._ignore_label,
            )
        super().process(inputs, outputs)


def _semantic(dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    options: dict[str, Any] = {}
    if "sem_seg_loading_fn" in inspect.signature(SemSegEvaluator).parameters:
        options["sem_seg_loading_fn"] = _load_labels
    return CheckedSemSegEvaluator(dataset_name, output_dir=output_folder, **options)


def _panoptic_to_semantic(dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    return _semantic(semantic_dataset(dataset_name, output_folder), output_folder)


def _load_labels(filename: str, copy: bool = False, dtype: Any = None) -> np.ndarray:
    """As newer Detectron2's own default, whose ``copy=False`` is an error from numpy 2 on."""
    with PathManager.open(filename, "rb") as f:
        return np.array(Image.open(f), dtype=dtype)


def _cityscapes_instances(dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    return CityscapesInstanceEvaluator(dataset_name)


def _cityscapes_semantic(dataset_name: str, output_folder: str | None) -> DatasetEvaluator:
    return CityscapesSemSegEvaluator(dataset_name)


_PANOPTIC: dict[str, Build] = {
    "PANOPTIC_ON": _coco_panoptic,
    "INSTANCE_ON": _panoptic_to_instances,
    "SEMANTIC_ON": _panoptic_to_semantic,
}

# evaluator_type: {switch: evaluator}
_EVALUATORS: dict[str, dict[str, Build]] = {
    "coco": {"INSTANCE_ON": _coco_instances},
    "coco_panoptic_seg": _PANOPTIC,
    "ade20k_panoptic_seg": _PANOPTIC,
    "sem_seg": {"SEMANTIC_ON": _semantic},
    "cityscapes_panoptic_seg": {
        "PANOPTIC_ON": _coco_panoptic,
        "INSTANCE_ON": _cityscapes_instances,
        "SEMANTIC_ON": _cityscapes_semantic,
    },
    "cityscapes_instance": {"INSTANCE_ON": _cityscapes_instances},
    "cityscapes_sem_seg": {"SEMANTIC_ON": _cityscapes_semantic},
}
