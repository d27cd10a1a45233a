"""A tiny model as its users have it: a folder."""

import pytest
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from knet.predictor import KNetPredictor


@pytest.fixture
def predictor(tiny_cfg):
    tiny_cfg.MODEL.KNET.TEST.OVERLAP_THRESH = 0.0
    return KNetPredictor(tiny_cfg, build_model(tiny_cfg), MetadataCatalog.get("tiny_val"))


@pytest.fixture
def model_folder(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
