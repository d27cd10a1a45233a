"""A drawn panoptic data set of four images, and results that find its segments."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

SIZE = 40
THINGS, STUFF = ["cat", "dog"], ["grass", "sky"]
# Data set id → contiguous id.
THING_IDS, STUFF_IDS = {3: 0, 7: 1}, {20: 2, 31: 3}


def config(panoptic=True, instance=True, semantic=True, top_k=100, kernels=100):
    on = {"PANOPTIC_ON": panoptic, "INSTANCE_ON": instance, "SEMANTIC_ON": semantic}
    knet = {"TEST": {**on, "NUM_KERNELS": 0}, "NUM_KERNELS": kernels, "KERNEL_PEAKS": False}
    return CfgNode(
        {
            "MODEL": {"KNET": knet},
            "TEST": {"DETECTIONS_PER_IMAGE": top_k},
        }
    )


def labels_of(image_id):
    """Ids of the four segments 1 … 4, of the classes 0 … 3; each image is shifted a bit."""
    ids = np.full((SIZE, SIZE), 3)
    ids[SIZE // 2 :] = 4
    ids[2 + image_id : 14 + image_id, 3:15] = 1
    ids[18:34, 20 + image_id : 30 + image_id] = 2
    ids[-1] = 0  # void
    return ids


def outputs_of(ids):
    """What a model gives that finds the segments 1 … 4 of ``ids``."""
    things = [k for k in (1, 2) if (ids == k).any()]
    instances = Instances((SIZE, SIZE))
    instances.pred_masks = torch.stack([torch.as_tensor(ids == k) for k in things])
    instances.pred_classes = torch.as_tensor(things) - 1
    instances.scores = torch.linspace(0.9, 0.8, len(things))
    instances.pred_boxes = Boxes(torch.zeros(len(things), 4))
    segments = [
        {"id": k, "category_id": k - 1, "isthing": k < 3} for k in range(1, 5) if (ids == k).any()
    ]
    semantic = torch.nn.functional.one_hot(torch.as_tensor(np.maximum(ids - 1, 0)), 4)
    return {
        "panoptic_seg": (torch.as_tensor(ids, dtype=torch.int32), segments),
        "instances": instances,
        "sem_seg": semantic.permute(2, 0, 1).float(),
    }


def evaluate(evaluator, records, ids_of=labels_of):
    evaluator.reset()
    for record in records:
        evaluator.process([dict(record)], [outputs_of(ids_of(record["image_id"]))])
    return evaluator.evaluate()
