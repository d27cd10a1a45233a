"""Models of timm as backbones."""

import sys

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from knet.config import get_cfg_from_file
from knet.modeling.backbones import Swin, TimmBackbone

SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


def config(*opts):
    return get_cfg_from_file(
        "configs/Base-KNet.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_timm_backbone",
         "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.TIMM.NAME", "resnet18", *opts],
    )  # fmt: skip


@pytest.mark.parametrize("name, channels, kwargs", [
    ("resnet18", (64, 128, 256, 512), {}),
    ("convnext_atto", (40, 80, 160, 320), {}),
    ("mobilenetv3_small_050", (8, 16, 24, 288), {}),
    ("swin_tiny_patch4_window7_224", (16, 32, 64, 128), {**SWIN, "strict_img_size": False}),
])  # fmt: skip
def test_maps_and_their_shapes(name, channels, kwargs):
    model = TimmBackbone(name, kwargs=kwargs)
    assert model.size_divisibility == 32
    shapes = model.output_shape()
    assert {k: v.stride for k, v in shapes.items()} == {f"res{i}": 2**i for i in (2, 3, 4, 5)}
    assert tuple(shape.channels for shape in shapes.values()) == channels
    outputs = model(torch.randn(2, 3, 96, 160))
    for key, x in outputs.items():
        shape = shapes[key]
        assert x.shape == (2, shape.channels, 96 // shape.stride, 160 // shape.stride)
    sum(x.mean() for x in outputs.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_values_are_those_of_timm():
    ours = TimmBackbone("resnet18").eval()
    theirs = timm.create_model("resnet18", num_classes=0).eval()
    theirs.load_state_dict(ours.model.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs.forward_features(images)
        torch.testing.assert_close(ours(images)["res5"], expected)


def test_layers_after_the_last_map_are_left_out():
    model = TimmBackbone("resnet18", out_features=["res3", "res4"])
    assert model.output_shape()["res4"] == ShapeSpec(channels=256, stride=16)
    outputs = model(torch.randn(1, 3, 64, 64))
    assert list(outputs) == ["res3", "res4"] and model.size_divisibility == 16
    sum(x.mean() for x in outputs.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_freezing_stops_at_a_map(name):
    model = TimmBackbone(name, freeze_at=3).train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    statistics = [m.running_mean.clone() for m in norms]
    outputs = model(torch.randn(2, 3, 64, 64))
    assert not outputs["res2"].requires_grad and not outputs["res3"].requires_grad
    outputs["res5"].mean().backward()
    trained = [p.requires_grad for p in model.parameters()]
    assert any(trained) and not trained[0]
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    for m, before in zip(norms, statistics):
        assert torch.equal(m.running_mean, before) == (not m.weight.requires_grad)


def test_a_frozen_model_learns_and_drops_nothing():
    cfg = config("MODEL.TIMM.FROZEN", True, "MODEL.BACKBONE.FREEZE_AT", 1,
                 "MODEL.TIMM.NAME", "convnext_atto", "MODEL.TIMM.DROP_PATH_RATE", 0.5)  # fmt: skip
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    model = build_backbone(cfg).train()
    assert model.training and not any(m.training for m in model.bottom_up.model.modules())
    sum(x.mean() for x in model(torch.randn(2, 3, 64, 64)).values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("bottom_up."), name
    with pytest.raises(
        ValueError, match=r"GRADIENT_CHECKPOINTING is True; with MODEL\.TIMM\.FROZEN"
    ):
        config("MODEL.TIMM.FROZEN", True, "MODEL.TIMM.GRADIENT_CHECKPOINTING", True)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_checkpointed_gradients_are_equal(name):
    images, gradients, state = torch.randn(2, 3, 64, 64), [], None
    for on in (False, True):
        model = TimmBackbone(name, gradient_checkpointing=on).eval()
        state = state or model.state_dict()
        model.load_state_dict(state)
        sum(x.square().mean() for x in model(images).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_from_a_config():
    cfg = config("MODEL.TIMM.NAME", "convnext_atto", "MODEL.TIMM.DROP_PATH_RATE", 0.1)
    model = build_backbone(cfg)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.1)
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    fpn = build_backbone(cfg)
    assert fpn.size_divisibility == 32
    assert list(fpn(torch.zeros(1, 3, 64, 64))) == ["p2", "p3", "p4", "p5"]


def test_arguments_of_the_model_come_from_the_yaml_file(tmp_path):
    path = tmp_path / "swin.yaml"
    path.write_text(
        "MODEL:\n  BACKBONE: {NAME: build_timm_backbone, FREEZE_AT: 0}\n"
        "  TIMM:\n    NAME: swin_tiny_patch4_window7_224\n    KWARGS: {strict_img_size: False, "
        "embed_dim: 16, depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8]}\n"
    )
    model = build_backbone(get_cfg_from_file(str(path)))
    assert model.output_shape()["res5"].channels == 128


@pytest.mark.parametrize("name, value", [
    ("checkpoint_path", "x.pth"), ("cache_dir", "x"), ("pretrained", True), ("pruned", True),
    ("pretrained_cfg", {"file": "x"}), ("pretrained_cfg", "x"), ("pretrained_strict", False),
    ("pretrained_cfg_overlay", {"url": "http://127.0.0.1/x"}), ("pretrained_filter_fn", "eval"),
    ("pretrained_of_the_future", "x"), ("features_only", False), ("in_chans", 4), ("device", "x"),
])  # fmt: skip
def test_arguments_that_load_something_do_not_reach_timm(name, value):
    with pytest.raises(ValueError, match=rf"MODEL\.TIMM\.KWARGS\.{name} is no argument of an arch"):
        build_backbone(config(f"MODEL.TIMM.KWARGS.{name}", value))


@pytest.mark.parametrize("name", [
    "hf-hub:some/model", "hf_hub:some/model", "local-dir:/tmp", "../x", "resnet18.a.b", "", "a b",
])  # fmt: skip
def test_addresses_are_no_names(name):
    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.NAME: .* is no plain name"):
        build_backbone(config("MODEL.TIMM.NAME", name))


def test_values_of_arguments_are_plain():
    for value in ({"a": 1}, [{"a": 1}]):
        with pytest.raises(ValueError, match=r"MODEL\.TIMM\.KWARGS\.block_args is .* or a list"):
            build_backbone(config("MODEL.TIMM.KWARGS.block_args", value))
    with pytest.raises(ValueError, match=r"other MODEL\.TIMM\.KWARGS"):
        build_backbone(config("MODEL.TIMM.KWARGS.layers", []))


@pytest.mark.parametrize("opts, message", [
    (["MODEL.TIMM.NAME", "convnext_ato"], r"'convnext_ato'; near to it are .*convnext_atto"),
    (["MODEL.TIMM.NAME", "vit_tiny_patch16_224"], r"strides \[16\].*'res2', 'res3', 'res5'"),
    (["MODEL.TIMM.NAME", "swin_s3_tiny_224"], r"MODEL\.TIMM\.KWARGS \{strict_img_size: False\}"),
    (["MODEL.TIMM.NAME", "inception_v3"], r"MODEL\.TIMM\.NAME: inception_v3 gives res2 of shape"),
    (["MODEL.TIMM.NAME", "beit_base_patch16_224", "MODEL.TIMM.DROP_PATH_RATE", 0.1],
     r"MODEL\.TIMM\.NAME: beit_base_patch16_224 has feature maps of strides \[16\]"),
    (["MODEL.TIMM.NAME", "vgg11", "MODEL.TIMM.DROP_PATH_RATE", 0.1], r"-1 leaves it out"),
    (["MODEL.TIMM.NAME", "hrnet_w18_small", "MODEL.TIMM.GRADIENT_CHECKPOINTING", True],
     r"MODEL\.TIMM\.GRADIENT_CHECKPOINTING: hrnet_w18_small does not offer it"),
    (["MODEL.BACKBONE.FREEZE_AT", 1], r"MODEL\.BACKBONE\.FREEZE_AT is 1; .* \[2, 3, 4, 5\]"),
    (["MODEL.TIMM.OUT_FEATURES", ["p2"]], r"MODEL\.TIMM\.OUT_FEATURES is \['p2'\]"),
])  # fmt: skip
def test_errors_name_the_key(opts, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(config(*opts))


def test_without_timm_the_message_says_what_to_install(monkeypatch):
    for name in [n for n in sys.modules if n == "timm" or n.startswith("timm.")]:
        monkeypatch.delitem(sys.modules, name)

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "timm":
                raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"build_timm_backbone needs timm.*pip install timm"):
        TimmBackbone("resnet18")
    with pytest.raises(ImportError, match=r"Swin needs timm.*\.\[timm\]"):
        Swin()


def test_other_pixels_than_the_weights_saw_are_told(monkeypatch, caplog):
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda n, **k: create(n, **{**k, "pretrained": False})
    )
    build_backbone(config("MODEL.TIMM.PRETRAINED", True))
    assert not caplog.text
    build_backbone(config("MODEL.TIMM.PRETRAINED", True, "MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0]))
    assert "MODEL.PIXEL_MEAN is [0.0, 0.0, 0.0]" in caplog.text and "123.675" in caplog.text
