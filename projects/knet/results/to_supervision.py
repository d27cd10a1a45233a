"""Results as `Detections` of the supervision library: trackers, zones, annotators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from torch import Tensor

from knet.modeling.instances import mask_boxes

__all__ = ["to_supervision"]


def to_supervision(results: Mapping[str, Any], metadata: Metadata, *, task: str) -> Any:
    """The results of one image as ``supervision.Detections``, n of them.

    Args:
        results: of `KNetPredictor` or the model.
        metadata: with the names of the classes, `KNetPredictor.metadata`.
        task: ``instance`` (by descending score; masks without a pixel are left out),
            ``panoptic`` (one a segment, things and stuff) or ``semantic`` (one for each class
            that has a pixel).

    Returns:
        ``Detections`` with ``xyxy`` (n, 4), ``mask`` (n, H, W), ``class_id`` (n,) labels,
        ``confidence`` (n,) (None for ``semantic``) and ``data["class_name"]``; for ``panoptic``
        also ``data["is_thing"]`` and ``data["segment_id"]``.

    Raises:
        ImportError: supervision is not installed.
        ValueError: unknown task, or the results lack it.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            "to_supervision needs the supervision package: pip install supervision"
        ) from error
    read = {
        "instance": ("instances", _instances),
        "panoptic": ("panoptic_seg", _panoptic),
        "semantic": ("sem_seg", _semantic),
    }
    if task not in read:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(read)}")
    key, convert = read[task]
    if key not in results:
        raise ValueError(f"the results have no {key!r}: turn on MODEL.KNET.TEST.{task.upper()}_ON")
    masks, labels, scores, names, data = convert(results[key], metadata)
    return supervision.Detections(
        xyxy=mask_boxes(masks).numpy(),
        mask=masks.numpy(),
        class_id=labels.numpy(),
        confidence=None if scores is None else scores.numpy(),
        data={"class_name": np.array(names, dtype=str), **data},
    )


def _instances(instances: Any, metadata: Metadata) -> tuple[Any, ...]:
    instances = instances.to("cpu")
    instances = instances[instances.pred_masks.flatten(1).any(1)]
    labels = instances.pred_classes
    names = [metadata.thing_classes[label] for label in labels.tolist()]
    return instances.pred_masks, labels, instances.scores, names, {}


def _panoptic(result: Any, metadata: Metadata) -> tuple[Any, ...]:
    id_map, segments = result[0].cpu(), result[1]
    ids = torch.tensor([segment["id"] for segment in segments], dtype=id_map.dtype)
    labels = torch.tensor([segment["category_id"] for segment in segments], dtype=torch.int64)
    scores = torch.tensor([segment["score"] for segment in segments], dtype=torch.float32)
    things = [bool(segment["isthing"]) for segment in segments]
    names = [
        (metadata.thing_classes if is_thing else metadata.stuff_classes)[label]
        for is_thing, label in zip(things, labels.tolist())
    ]
    data = {"is_thing": np.array(things, dtype=bool), "segment_id": ids.numpy()}
    return id_map == ids[:, None, None], labels, scores, names, data


def _semantic(scores: Tensor, metadata: Metadata) -> tuple[Any, ...]:
    winner = scores.argmax(dim=0).cpu()
    labels = winner.unique()
    names = [metadata.stuff_classes[label] for label in labels.tolist()]
    return winner == labels[:, None, None], labels, None, names, {}
