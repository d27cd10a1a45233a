"""The evaluators of a data set, by its ``evaluator_type`` and by the results that are asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    DatasetEvaluator,
)

from knet.config_file import inference_kernels

from .derived import converted_dataset, instance_dataset, panoptic_dataset, semantic_dataset
from .instances import InstanceEvaluator
from .panoptic import PanopticEvaluator
from .scores import Evaluators
from .semantic import SemanticEvaluator

__all__ = ["build_evaluator"]

logger = logging.getLogger(__name__)

# config, data set, output folder; None where the data set has nothing that could be judged
Build = Callable[[CfgNode, str, str | None], DatasetEvaluator | None]


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
    evaluators = []
    for switch, build in builders.items():
        if not cfg.MODEL.KNET.TEST[switch]:
            continue
        built = build(cfg, dataset_name, output_folder)
        if built is not None:
            evaluators.append(built)
        else:
            message = "Data set '%s' has no thing classes: MODEL.KNET.TEST.%s is not evaluated"
            logger.info(message, dataset_name, switch)
    if not evaluators:
        needed = " or ".join(f"MODEL.KNET.TEST.{switch}" for switch in builders)
        raise ValueError(
            f"Nothing to evaluate on data set '{dataset_name}' (evaluator_type "
            f"'{evaluator_type}'): turn on {needed}."
        )
    return Evaluators(evaluators)


def _instances(cfg: CfgNode, name: str, folder: str | None) -> DatasetEvaluator:
    if not MetadataCatalog.get(name).get("json_file"):
        name = converted_dataset(name, folder)
    key, kernels = inference_kernels(cfg)
    limits = {"TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE, key: kernels}
    # below COCO's 100 the limit changes nothing: there are no more detections
    most = max(100, cfg.TEST.DETECTIONS_PER_IMAGE)
    return InstanceEvaluator(name, folder, max_dets_per_image=most, limits=limits)


def _panoptic_to_instances(cfg: CfgNode, name: str, folder: str | None) -> DatasetEvaluator | None:
    if not MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id:
        return None
    return _instances(cfg, instance_dataset(panoptic_dataset(name, folder), folder), folder)


def _panoptic_to_semantic(cfg: CfgNode, name: str, folder: str | None) -> DatasetEvaluator:
    return SemanticEvaluator(semantic_dataset(panoptic_dataset(name, folder), folder), folder)


def _panoptic(_: CfgNode, name: str, folder: str | None) -> DatasetEvaluator:
    return PanopticEvaluator(panoptic_dataset(name, folder), folder)


_PANOPTIC: dict[str, Build] = {
    "PANOPTIC_ON": _panoptic,
    "INSTANCE_ON": _panoptic_to_instances,
    "SEMANTIC_ON": _panoptic_to_semantic,
}
_CITYSCAPES: dict[str, Build] = {
    "PANOPTIC_ON": _PANOPTIC["PANOPTIC_ON"],
    "INSTANCE_ON": lambda _, name, __: CityscapesInstanceEvaluator(name),
    "SEMANTIC_ON": lambda _, name, __: CityscapesSemSegEvaluator(name),
}

# evaluator_type: {switch: evaluator}
_EVALUATORS: dict[str, dict[str, Build]] = {
    "coco": {"INSTANCE_ON": _instances},
    "coco_panoptic_seg": _PANOPTIC,
    "ade20k_panoptic_seg": _PANOPTIC,
    "sem_seg": {"SEMANTIC_ON": lambda _, name, folder: SemanticEvaluator(name, folder)},
    "cityscapes_panoptic_seg": _CITYSCAPES,
    "cityscapes_instance": {"INSTANCE_ON": _CITYSCAPES["INSTANCE_ON"]},
    "cityscapes_sem_seg": {"SEMANTIC_ON": _CITYSCAPES["SEMANTIC_ON"]},
}
