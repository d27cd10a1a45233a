"""Data sets that the evaluators judge."""

from __future__ import annotations

import json

import pytest

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from knet.evaluation import id2rgb

from . import photos
from .drawn import SIZE, STUFF, STUFF_IDS, THING_IDS, THINGS, labels_of


@pytest.fixture
def records():
    yield photos.register()
    DatasetCatalog.remove(photos.NAME)
    MetadataCatalog.remove(photos.NAME)


@pytest.fixture
def make_dataset(tmp_path):
    """Register a panoptic data set without instances JSON and without semantic PNGs."""
    names = []

    def make(name, **metadata):
        (tmp_path / "panoptic").mkdir(exist_ok=True)
        content = {
            "images": [],
            "annotations": [],
            "categories": [
                {"id": key, "name": (THINGS + STUFF)[k], "isthing": int(k < 2)}
                for key, k in {**THING_IDS, **STUFF_IDS}.items()
            ],
        }
        records = []
        for image_id in range(4):
            ids = labels_of(image_id)
            Image.fromarray(id2rgb(ids)).save(tmp_path / "panoptic" / f"{image_id}.png")
            contiguous = dict(enumerate(THING_IDS | STUFF_IDS))
            segments = [
                {
                    "id": k + 1,
                    "category_id": contiguous[k],
                    "iscrowd": 0,
                    "area": int((ids == k + 1).sum()),
                    "bbox": [0, 0, SIZE, SIZE],
                }
                for k in range(4)
            ]
            content["images"].append(
                {"id": image_id, "file_name": f"{image_id}.jpg", "height": SIZE, "width": SIZE}
            )
            content["annotations"].append(
                {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments}
            )
            records.append(
                {
                    "file_name": str(tmp_path / f"{image_id}.jpg"),
                    "image_id": image_id,
                    "height": SIZE,
                    "width": SIZE,
                    "pan_seg_file_name": str(tmp_path / "panoptic" / f"{image_id}.png"),
                    "segments_info": [
                        dict(s, category_id=k, isthing=k < 2) for k, s in enumerate(segments)
                    ],
                }
            )
        (tmp_path / "panoptic.json").write_text(json.dumps(content), encoding="utf-8")
        DatasetCatalog.register(name, lambda: records)
        values = {
            "panoptic_json": str(tmp_path / "panoptic.json"),
            "panoptic_root": str(tmp_path / "panoptic"),
            "thing_classes": THINGS,
            "stuff_classes": THINGS + STUFF,
            "thing_dataset_id_to_contiguous_id": THING_IDS,
            "stuff_dataset_id_to_contiguous_id": THING_IDS | STUFF_IDS,
            "evaluator_type": "coco_panoptic_seg",
            "ignore_label": 255,
            **metadata,
        }
        MetadataCatalog.get(name).set(**values)
        names.append(name)
        return records

    yield make
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in [n for n in catalog.list() if n.split("/")[0] in names]:
            catalog.remove(name)
