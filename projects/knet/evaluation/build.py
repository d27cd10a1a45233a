"""The evaluators of a data set, by its ``evaluator_type`` and by the results that are asked for."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Optional

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    DatasetEvaluator,
    SemSegEvaluator,
)

from knet.data.images import open_image

from .derived import converted_dataset, instance_dataset, semantic_dataset
from .evaluators import Evaluators, SemanticEvaluator
from .instances import InstanceEvaluator
from .panoptic import PanopticEvaluator

__all__ = ["build_evaluator"]

logger = logging.getLogger(__name__)

# Data set, output folder, limits of the objects that are found in an image, by their keys; None
# where the data set has nothing that the evaluator could judge.
Limits = Mapping[str, int]
Build = Callable[[str, Optional[str], Limits], Optional[DatasetEvaluator]]

# Detections an image and class that COCO's AP counts.
_COCO_LIMIT = 100
_DETECTIONS = "TEST.DETECTIONS_PER_IMAGE"


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> Evaluators:
    """Detectron2's evaluators for the results that the model gives on a data set.

    Args:
        cfg: ``MODEL.KNET.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON`` choose among the evaluators
            that fit the data set. AP counts ``TEST.DETECTIONS_PER_IMAGE`` instances an image
            where these are more than COCO's 100.
        dataset_name: a registered data set. Its metadata's ``evaluator_type`` is one of
            ``coco``, ``coco_panoptic_seg``, ``ade20k_panoptic_seg``, ``sem_seg``,
            ``cityscapes_panoptic_seg``, ``cityscapes_instance`` and ``cityscapes_sem_seg``.
        output_folder: for the evaluators' own files, and for ground truth that has to be derived
            (see :mod:`knet.evaluation.derived`). All processes of a run must call this function.

    Returns:
        Evaluators whose ``evaluate()`` gives ``panoptic_seg`` (``PQ`` …), ``segm`` (``AP`` …) and
        ``sem_seg`` (``mIoU`` …), each in percent, as far as they are on and fit the data set.
        What has no ground truth (the AP of a size that no object has, ``PQ_st`` without stuff
        classes) is left out; a model that finds nothing has AP 0.

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
    limits = {
        _DETECTIONS: cfg.TEST.DETECTIONS_PER_IMAGE,
        "MODEL.KNET.NUM_KERNELS": cfg.MODEL.KNET.NUM_KERNELS,
    }
    evaluators = []
    for switch, build in builders.items():
        if test[switch]:
            built = build(dataset_name, output_folder, limits)
            if built is None:
                logger.info(
                    "Data set '%s' has no thing classes: MODEL.KNET.TEST.%s is not evaluated",
                    dataset_name,
                    switch,
                )
            else:
                evaluators.append(built)
    if not evaluators:
        needed = " or ".join(f"MODEL.KNET.TEST.{switch}" for switch in builders)
        raise ValueError(
            f"Nothing to evaluate on data set '{dataset_name}' (evaluator_type "
            f"'{evaluator_type}'): turn on {needed}."
        )
    return Evaluators(evaluators)


def _coco_panoptic(dataset_name: str, output_folder: str | None, _: Limits) -> DatasetEvaluator:
    return PanopticEvaluator(dataset_name, output_folder)


def _coco_instances(
    dataset_name: str, output_folder: str | None, limits: Limits
) -> DatasetEvaluator:
    if not MetadataCatalog.get(dataset_name).get("json_file"):
        dataset_name = converted_dataset(dataset_name, output_folder)
    # Under COCO's limit the limit changes nothing: there are no more detections.
    return InstanceEvaluator(
        dataset_name,
        output_folder,
        max_dets_per_image=max(limits[_DETECTIONS], _COCO_LIMIT),
        limits=limits,
    )


def _panoptic_to_instances(
    dataset_name: str, output_folder: str | None, limits: Limits
) -> DatasetEvaluator | None:
    if not MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id:
        return None
    alias = instance_dataset(dataset_name, output_folder)
    return _coco_instances(alias, output_folder, limits)


def _semantic(dataset_name: str, output_folder: str | None, _: Limits) -> DatasetEvaluator:
    options: dict[str, Any] = {}
    if "sem_seg_loading_fn" in inspect.signature(SemSegEvaluator).parameters:
        options["sem_seg_loading_fn"] = _load_labels
    return SemanticEvaluator(dataset_name, output_dir=output_folder, **options)


def _panoptic_to_semantic(
    dataset_name: str, output_folder: str | None, limits: Limits
) -> DatasetEvaluator:
    return _semantic(semantic_dataset(dataset_name, output_folder), output_folder, limits)


def _load_labels(filename: str, copy: bool = False, dtype: Any = None) -> np.ndarray:
    """As newer Detectron2's own default, whose ``copy=False`` is an error from numpy 2 on."""
    with open_image(filename, max_pixels=None) as image:  # it has its picture's size by now
        return np.array(image, dtype=dtype)


def _cityscapes_instances(
    dataset_name: str, output_folder: str | None, _: Limits
) -> DatasetEvaluator:
    return CityscapesInstanceEvaluator(dataset_name)


def _cityscapes_semantic(
    dataset_name: str, output_folder: str | None, _: Limits
) -> DatasetEvaluator:
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
