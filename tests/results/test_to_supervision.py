"""Results as supervision's Detections; a stand-in takes its place, which keeps what it is given."""

import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances

from knet.results.to_supervision import to_supervision

METADATA = Metadata(name="two", thing_classes=["cat"], stuff_classes=["cat", "sky"])


@dataclass
class Detections:
    xyxy: Any
    mask: Any
    class_id: Any
    confidence: Any
    data: Any


@pytest.fixture
def results():
    id_map = torch.tensor([[2, 2, 2], [2, 1, 1], [0, 1, 1]], dtype=torch.int32)
    segments = [
        {"id": 1, "category_id": 0, "isthing": True, "score": 0.9, "area": 4},
        {"id": 2, "category_id": 1, "isthing": False, "score": 0.5, "area": 4},
    ]
    instances = Instances((3, 3))
    instances.pred_masks = torch.stack([id_map == 1, id_map == 9])  # the second is empty
    instances.pred_classes = torch.tensor([0, 0])
    instances.scores = torch.tensor([0.9, 0.8])
    semantic = torch.stack([id_map == 1, id_map != 1, id_map == 9]).float()
    return {"panoptic_seg": (id_map, segments), "instances": instances, "sem_seg": semantic}


@pytest.fixture
def stand_in(monkeypatch):
    module = types.ModuleType("supervision")
    module.Detections = Detections
    monkeypatch.setitem(sys.modules, "supervision", module)


def test_instances(results, stand_in):
    found = to_supervision(results, METADATA, task="instance")
    assert found.xyxy.tolist() == [[1, 1, 3, 3]]
    assert found.mask.dtype == bool and found.mask.shape == (1, 3, 3) and found.mask.sum() == 4
    assert found.confidence == pytest.approx([0.9]) and found.class_id.tolist() == [0]
    assert list(found.data["class_name"]) == ["cat"]


def test_panoptic(results, stand_in):
    found = to_supervision(results, METADATA, task="panoptic")
    assert found.xyxy.tolist() == [[1, 1, 3, 3], [0, 0, 3, 2]]
    assert found.mask.sum(axis=(1, 2)).tolist() == [4, 4]
    assert found.class_id.tolist() == [0, 1] and found.confidence == pytest.approx([0.9, 0.5])
    assert list(found.data["class_name"]) == ["cat", "sky"]
    assert found.data["is_thing"].tolist() == [True, False]
    assert found.data["segment_id"].tolist() == [1, 2]


def test_semantic(results, stand_in):
    found = to_supervision(results, METADATA, task="semantic")
    assert found.class_id.tolist() == [0, 1] and found.confidence is None
    assert list(found.data["class_name"]) == ["cat", "sky"]
    assert found.mask.sum(axis=(1, 2)).tolist() == [4, 5]


def test_nothing_found(results, stand_in):
    id_map = torch.zeros(3, 3, dtype=torch.int32)
    empty = {"panoptic_seg": (id_map, []), "instances": results["instances"][1:]}
    for task in ("panoptic", "instance"):
        found = to_supervision(empty, METADATA, task=task)
        assert found.xyxy.shape == (0, 4) and found.mask.shape == (0, 3, 3)
        assert found.class_id.shape == found.confidence.shape == (0,)
        assert np.issubdtype(found.class_id.dtype, np.integer)


def test_what_is_missing_is_said(results, stand_in, monkeypatch):
    with pytest.raises(ValueError, match="known are instance, panoptic, semantic"):
        to_supervision(results, METADATA, task="boxes")
    del results["sem_seg"]
    with pytest.raises(ValueError, match="SEMANTIC_ON"):
        to_supervision(results, METADATA, task="semantic")
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        to_supervision(results, METADATA, task="instance")


def test_the_library_takes_them(results):
    pytest.importorskip("supervision")
    for task, count in (("instance", 1), ("panoptic", 2), ("semantic", 2)):
        found = to_supervision(results, METADATA, task=task)
        assert len(found) == count and len(found[:1]) == 1
        assert found.area.sum() > 0
