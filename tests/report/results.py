"""Results with known errors, made from the ground truth of toy scenes."""

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from knet.classes import ClassIds, categories_of
from knet.data.panoptic_png import read_panoptic_png
from knet.results.coco_files import ResultFiles

NUM_CLASSES = 8
IDS = ClassIds((0, 1, 2, 3), (4, 5, 6, 7))


def output_of(record):
    """The truth with each segment shifted to the right, the first thing taken for one of the
    next class, and the last thing not found."""
    ids = read_panoptic_png(record["pan_seg_file_name"]).astype(np.int64)
    things = [s for s in record["segments_info"] if s["isthing"]]
    stuff = [s for s in record["segments_info"] if not s["isthing"]]
    shift = 1 + record["image_id"] % 3
    id_map, segments = np.zeros_like(ids), []
    moved = np.roll(ids, shift, axis=1)
    for k, segment in enumerate([*stuff, *things[:-1]], start=1):
        mask = (ids if segment in stuff else moved) == segment["id"]
        id_map[mask] = k
        label = segment["category_id"]
        if segment is things[0]:
            label = (label + 1) % len(IDS.things)
        segments.append(
            {
                "id": k,
                "category_id": label,
                "isthing": segment["isthing"],
                "score": round(1 - 0.1 * k, 2),
            }
        )
    segments = [dict(s, area=int((id_map == s["id"]).sum())) for s in segments]
    segments = [s for s in segments if s["area"]]
    labels = np.zeros_like(ids)
    for segment in segments:
        labels[id_map == segment["id"]] = segment["category_id"]
    found = [s for s in segments if s["isthing"]]
    instances = Instances(ids.shape)
    instances.pred_masks = torch.as_tensor(
        np.array([id_map == s["id"] for s in found], bool).reshape(-1, *ids.shape)
    )
    instances.pred_boxes = Boxes(torch.zeros(len(found), 4))
    instances.scores = torch.tensor([s["score"] for s in found])
    instances.pred_classes = torch.tensor([s["category_id"] for s in found])
    sem_seg = torch.nn.functional.one_hot(torch.as_tensor(labels), NUM_CLASSES)
    return {
        "panoptic_seg": (torch.as_tensor(id_map, dtype=torch.int32), segments),
        "instances": instances,
        "sem_seg": sem_seg.permute(2, 0, 1).float(),
    }


def write_results(folder, dataset="tiny_val", *, kinds=("panoptic_seg", "instances", "sem_seg")):
    """The same as files."""
    categories = categories_of(MetadataCatalog.get(dataset), IDS)
    with ResultFiles(folder, categories=categories) as files:
        for record in DatasetCatalog.get(dataset):
            output = output_of(record)
            files.add(
                {kind: output[kind] for kind in kinds},
                image_id=record["image_id"],
                file_name=record["file_name"],
            )
    return folder


def arguments(tiny_opts, *flags, dataset="tiny_val", config="panoptic"):
    """Of `knet`, for a report on the toy scenes."""
    data = ["DATASETS.TRAIN", f"('{dataset}',)", "DATASETS.TEST", f"('{dataset}',)"]
    flags = ["report", "--config-file", f"configs/shapes/{config}.yaml", *map(str, flags)]
    return [*flags, *map(str, tiny_opts), *data]
