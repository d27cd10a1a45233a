"""Ground truth as predictions, for scores of 100."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from knet.config import get_cfg_from_file
from knet.data import check_dataset, read_panoptic_png, register_custom
from knet.data.formats import Prepared
from knet.data.label_png import read_label_png
from knet.data.masks import encode_segmentation
from knet.evaluation import build_evaluator

SWITCHES = {"instance": "INSTANCE_ON", "panoptic": "PANOPTIC_ON", "semantic": "SEMANTIC_ON"}
SCORES = {
    "instance": ("segm", "AP"),
    "panoptic": ("panoptic_seg", "PQ"),
    "semantic": ("sem_seg", "mIoU"),
}


def register(data: Prepared) -> CfgNode:
    """Registers both parts; the config."""
    cfg = get_cfg_from_file("configs/shapes/panoptic.yaml", [])
    cfg.defrost()
    cfg.DATASETS.CUSTOM = [data.train, data.val]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (data.train["NAME"],), (data.val["NAME"],)
    for task, switch in SWITCHES.items():
        cfg.MODEL.KNET.TEST[switch] = task == data.task
    register_custom(cfg)
    return cfg


def defects(data: Prepared) -> list[str]:
    """What the checker says of both parts, which are registered."""
    return [
        str(defect)
        for entry in (data.train, data.val)
        for defect in check_dataset(entry["NAME"]).defects
    ]


def score(cfg: CfgNode, name: str, task: str, output: Path) -> float:
    """The task's score of the labels of a data set as predictions."""
    evaluator = build_evaluator(cfg, name, str(output))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([dict(record)], [_predicted(record, name, task)])
    kind, key = SCORES[task]
    return evaluator.evaluate()[kind][key]


def _predicted(record: dict[str, Any], name: str, task: str) -> dict[str, Any]:
    size = record["height"], record["width"]
    if task == "semantic":
        classes = len(MetadataCatalog.get(name).stuff_classes)
        labels = read_label_png(record["sem_seg_file_name"], size, classes, 255)
        one_hot = [labels == k for k in range(classes)]
        return {"sem_seg": torch.from_numpy(np.stack(one_hot)).float()}
    if task == "panoptic":
        ids = read_panoptic_png(record["pan_seg_file_name"]).astype(np.int32)
        return {"panoptic_seg": (torch.from_numpy(ids), record["segments_info"])}
    instances = Instances(size)
    found = [a for a in record["annotations"] if not a.get("iscrowd")]
    rles = [encode_segmentation(a["segmentation"], size) for a in found]
    masks = [mask_util.decode(rle).astype(bool) for rle in rles]
    instances.pred_masks = torch.from_numpy(np.stack(masks))
    instances.pred_classes = torch.tensor([a["category_id"] for a in found])
    instances.scores = torch.ones(len(found))
    instances.pred_boxes = Boxes(torch.zeros(len(found), 4))
    return {"instances": instances}
