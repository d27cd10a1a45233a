"""Results as `Detections` of the supervision library: trackers, zones, annotators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata

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
    keys = {"instance": "instances", "panoptic": "panoptic_seg", "semantic": "sem_seg"}
    if task not in keys:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(keys)}")
    if keys[task] not in results:
        raise ValueError(
            f"the results have no {keys[task]!r}: turn on MODEL.KNET.TEST.{task.upper()}_ON"
        )
    result, scores, data = results[keys[task]], None, {}
    if task == "instance":
        instances = result.to("cpu")
        instances = instances[instances.pred_masks.flatten(1).any(1)]
        masks, labels, scores = instances.pred_masks, instances.pred_classes, instances.scores
        names = [metadata.thing_classes[label] for label in labels.tolist()]
    elif task == "panoptic":
        id_map, segments = result[0].cpu(), result[1]
        ids = torch.tensor([segment["id"] for segment in segments], dtype=id_map.dtype)
        masks = id_map == ids[:, None, None]
        labels = torch.tensor([segment["category_id"] for segment in segments], dtype=torch.int64)
        scores = torch.tensor([segment["score"] for segment in segments], dtype=torch.float32)
        is_thing = [bool(segment["isthing"]) for segment in segments]
        names = [
            (metadata.thing_classes if thing else metadata.stuff_classes)[label]
            for thing, label in zip(is_thing, labels.tolist())
        ]
        data = {"is_thing": np.array(is_thing, dtype=bool), "segment_id": ids.numpy()}
    else:
        winner = result.argmax(dim=0).cpu()
        labels = winner.unique()
        masks = winner == labels[:, None, None]
        names = [metadata.stuff_classes[label] for label in labels.tolist()]
    return supervision.Detections(
        xyxy=mask_boxes(masks).numpy(),
        mask=masks.numpy(),
        class_id=labels.numpy(),
        confidence=None if scores is None else scores.numpy(),
        data={"class_name": np.array(names, dtype=str), **data},
    )
