"""Published names and the checkpointer."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.published_names import (
    import_published,
    to_our_name,
    to_published_name,
)
from knet.checkpoint.recognise import import_backbone

SHAPES = Path(__file__).parents[1] / "golden" / "published_shapes.json"


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_names_translate_both_ways(task):
    names = json.loads(SHAPES.read_text())[task]["parameters"]
    heads = [name for name in names if not name.startswith("backbone.")]
    ours = [to_our_name(name) for name in heads]
    assert None not in ours and len(set(ours)) == len(heads)
    assert [to_published_name(name) for name in ours] == heads


@pytest.mark.parametrize("head", ["fcn", "pspnet", "deeplabv3", "upernet"])
def test_semantic_names_translate_both_ways(head):
    names = list(json.loads(SHAPES.read_text())[f"semantic_{head}"]["parameters"])
    ours = [to_our_name(name, semantic=True) for name in names]
    assert None not in ours and len(set(ours)) == len(names)
    assert [to_published_name(name, semantic=True) for name in ours] == names


def test_kind_of_model_is_seen_from_the_names():
    state = {"decode_head.kernel_update_head.0.fc_mask.bias": torch.ones(2),
             "backbone.stem.4.running_var": torch.ones(3)}  # fmt: skip
    assert set(import_published(state)) == {
        "heads.rounds.0.mask_predictor.bias", "backbone.stem.conv2.norm.running_var",
    }  # fmt: skip


def test_imagenet_weights_lose_their_classifier():
    state = {"stem.0.weight": torch.ones(1), "layer4.2.bn3.bias": torch.ones(1),
             "layer2.0.downsample.0.weight": torch.ones(1), "fc.weight": torch.ones(1)}  # fmt: skip
    left_out = Counter()
    kind, ours = import_backbone(state, {"backbone.stem.conv1.weight"}, left_out)
    assert kind == "ResNet-V1c weights" and left_out == {"classifier": 1}
    assert set(ours) == {
        "backbone.stem.conv1.weight", "backbone.res5.2.conv3.norm.bias",
        "backbone.res3.0.shortcut.weight",
    }  # fmt: skip


def test_unknown_published_names_are_all_listed():
    state = {"roi_head.mask_head.0.fc_mask.bias": torch.zeros(2), "a.b": torch.zeros(1),
             "c": torch.zeros(1)}  # fmt: skip
    with pytest.raises(KeyError, match=r"a\.b, c"):
        import_published(state)
    assert to_our_name("rpn_head.conv_seg.extra.weight") is None


def test_feature_transforms_become_matrices():
    name = "roi_head.mask_head.2.feat_transform.conv.weight"
    renamed = import_published({name: torch.zeros(4, 4, 1, 1)})
    assert renamed["heads.rounds.2.feature_transform.weight"].shape == (4, 4)


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


def test_missing_file(tiny_cfg):
    with pytest.raises(FileNotFoundError, match=r"lost\.pth.*MODEL\.WEIGHTS"):
        KNetCheckpointer(build_model(tiny_cfg)).load("lost.pth")
