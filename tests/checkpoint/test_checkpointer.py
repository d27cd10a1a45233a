"""Weights of other models are refused, and what was wrong is named."""

import pytest
import torch
from detectron2.modeling import build_model

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.published_names import to_published_name


def test_backbone_alone_may_be_loaded_for_training_but_not_for_scoring(tiny_cfg, tmp_path):
    model = build_model(tiny_cfg)
    state = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    torch.save({"model": state}, tmp_path / "backbone.pth")
    other = build_model(tiny_cfg)
    KNetCheckpointer(other).load(str(tmp_path / "backbone.pth"))
    for name, value in other.backbone.state_dict().items():
        assert torch.equal(value, state[f"backbone.{name}"]), name
    with pytest.raises(ValueError, match=r"backbone\.pth: checkpoint of another model: \d+ of"):
        KNetCheckpointer(other, strict=True).load(str(tmp_path / "backbone.pth"))


@pytest.mark.parametrize("wrapped", [False, True])
def test_imagenet_resnet_v1c_is_loaded(semantic_cfg, tmp_path, wrapped):
    semantic_cfg.merge_from_list(
        ["MODEL.BACKBONE.NAME", "build_resnet_v1c_backbone", "MODEL.RESNETS.STEM_OUT_CHANNELS", 32,
         "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN"]
    )  # fmt: skip
    model, other = build_model(semantic_cfg), build_model(semantic_cfg)
    state = {
        to_published_name(f"backbone.{k}", semantic=True).removeprefix("backbone."): v
        for k, v in model.backbone.state_dict().items()
    }
    assert {"stem.4.running_mean", "layer3.5.bn3.weight"} <= set(state)
    state["fc.weight"] = torch.zeros(1000, 512)
    saved = {"state_dict": state, "meta": {"epoch": 1}} if wrapped else state
    torch.save(saved, tmp_path / "resnet50_v1c.pth")
    KNetCheckpointer(other).load(str(tmp_path / "resnet50_v1c.pth"))
    for name, value in other.backbone.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name]), name


def test_other_shapes_are_named(tiny_cfg, tmp_path):
    KNetCheckpointer(build_model(tiny_cfg), str(tmp_path)).save("model")
    tiny_cfg.MODEL.KNET.NUM_KERNELS = 7
    checkpointer = KNetCheckpointer(build_model(tiny_cfg), strict=True)
    with pytest.raises(
        ValueError, match=r"1 of \d+ weights.*init_kernels\.weight \(is \(12, .*should be \(7, "
    ):
        checkpointer.load(str(tmp_path / "model.pth"))


def test_unknown_weights_and_empty_path_are_refused_for_scoring(tiny_cfg, tmp_path):
    KNetCheckpointer(build_model(tiny_cfg), str(tmp_path)).save("model")
    tiny_cfg.MODEL.KNET.NUM_ROUNDS = 2
    checkpointer = KNetCheckpointer(build_model(tiny_cfg), strict=True)
    with pytest.raises(ValueError, match=r"heads\.rounds\.2\.\S+ \(unknown\)"):
        checkpointer.load(str(tmp_path / "model.pth"))
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        checkpointer.load("")


def test_plain_weights_start_a_model_whose_rounds_see_levels(tiny_cfg, tmp_path):
    plain = build_model(tiny_cfg)
    KNetCheckpointer(plain, str(tmp_path)).save("model")
    tiny_cfg.MODEL.KNET.ROUND_LEVELS = ["res5", "res4"]
    model = build_model(tiny_cfg)
    fresh = {n: v.clone() for n, v in model.state_dict().items() if "level_transform" in n}
    KNetCheckpointer(model).load(str(tmp_path / "model.pth"))
    state = model.state_dict()
    assert len(fresh) == 6 and state.keys() == plain.state_dict().keys() | fresh.keys()
    for name, value in {**plain.state_dict(), **fresh}.items():
        assert torch.equal(state[name], value), name
    # scoring asks for all
    with pytest.raises(ValueError, match=r"what differs is MODEL\.KNET\.ROUND_LEVELS$"):
        KNetCheckpointer(model, strict=True).load(str(tmp_path / "model.pth"))


def test_missing_file(tiny_cfg):
    with pytest.raises(FileNotFoundError, match=r"lost\.pth.*MODEL\.WEIGHTS"):
        KNetCheckpointer(build_model(tiny_cfg)).load("lost.pth")
