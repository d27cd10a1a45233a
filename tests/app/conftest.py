"""Models for the page's tests."""

import pytest
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from knet.predictor import KNetPredictor


@pytest.fixture
def make():
    """A predictor of a config, with random weights."""
    return lambda cfg: KNetPredictor(cfg, build_model(cfg), MetadataCatalog.get("tiny_val"))


@pytest.fixture
def predictor(make, tiny_cfg):
    return make(tiny_cfg)


@pytest.fixture
def semantic(make, semantic_cfg):
    return make(semantic_cfg)


@pytest.fixture
def scene(tiny_shapes):
    return sorted((tiny_shapes / "val" / "images").iterdir())[0]
