"""Every kind of weights that MODEL.WEIGHTS may name is recognised and loaded."""

import logging
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.published_names import export_published, import_published
from knet.checkpoint.recognise import import_backbone
from knet.checkpoint.write_file import write_weights

SMALL_RESNET50 = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
SWIN = ["MODEL.SWIN.EMBED_DIM", 16, "MODEL.SWIN.DEPTHS", [2, 2, 2, 2],
        "MODEL.SWIN.NUM_HEADS", [1, 2, 4, 8], "MODEL.SWIN.WINDOW_SIZE", 2]  # fmt: skip
DCN = [*SMALL_RESNET50, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]]


def build(cfg, backbone, *opts):
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", backbone, *opts])
    if "fpn" in backbone:
        cfg.MODEL.KNET.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    return randomise(build_model(cfg)), build_model(cfg).eval()


def randomise(model):
    """Also counters and statistics, which initialisation leaves alike."""
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * 0.1)
        else:
            value.fill_(7)
    return model.eval()


def backbone_of(model):
    return getattr(model.backbone, "bottom_up", model.backbone).state_dict()


def published(model, prefix="backbone."):
    state = export_published(model.state_dict())
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def load(model, saved, path, **arguments):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(saved, protocol=2))
    else:
        torch.save(saved, path)
    KNetCheckpointer(model, **arguments).load(str(path))


def assert_equal(a, b, leaving_out=()):
    names = {k for k in a if not any(part in k for part in leaving_out)}
    assert names and set(a) == set(b)
    assert [k for k in names if not torch.equal(a[k], b[k])] == []


@pytest.mark.parametrize(
    ("backbone", "opts"),
    [
        ("build_resnet_fpn_backbone", SMALL_RESNET50),
        ("build_deform_resnet_fpn_backbone", DCN),
        ("build_swin_fpn_backbone", SWIN),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_panoptic_models(tiny_cfg, tmp_path, caplog, backbone, opts, prefix):
    model, other = build(tiny_cfg, backbone, *opts)
    state = export_published(model.state_dict())
    assert_equal(import_published(state), model.state_dict())
    saved = {"meta": {"CLASSES": ("a", "b"), "epoch": 12}, "optimizer": {"x": 1},
             "state_dict": {prefix + k: v for k, v in state.items()}}  # fmt: skip
    with caplog.at_level(logging.INFO, "knet"):
        load(other, saved, tmp_path / "knet.pth", strict=True)
    assert_equal(model.state_dict(), other.state_dict())
    said = [r.getMessage() for r in caplog.records if r.name.startswith("knet")]
    assert len(said) == 2 and said[0].startswith("Loading ")
    assert "instance or panoptic K-Net checkpoint" in said[1]
    if "swin" in backbone:
        assert "8 attention masks and indices" in said[1]


@pytest.mark.parametrize("head", ["fcn", "psp", "aspp", "uper"])
def test_published_semantic_models(semantic_cfg, tmp_path, head):
    semantic_cfg.MODEL.KNET.KERNEL_HEAD = head
    model, other = build(semantic_cfg, "build_resnet_v1c_backbone", *SMALL_RESNET50)
    state = export_published(model.state_dict())
    assert {"decode_head.kernel_update_head.0.fc_mask.weight", "auxiliary_head.conv_seg.bias",
            "backbone.stem.7.running_var"} <= set(state)  # fmt: skip
    load(other, {"meta": {}, "state_dict": state}, tmp_path / "knet.pth", strict=True)
    assert_equal(model.state_dict(), other.state_dict())


def test_semantic_swin_in_both_layouts(semantic_cfg, tmp_path):
    model, other = build(semantic_cfg, "build_swin_backbone", *SWIN)
    state = export_published(model.state_dict())
    load(other, {"state_dict": state}, tmp_path / "stages.pth", strict=True)
    assert_equal(model.state_dict(), other.state_dict())
    original = {k: v for k, v in state.items() if not k.startswith("backbone.")}
    for name, value in backbone_of(model).items():
        parts = name.split(".")
        if "downsample" in parts:  # at the end of the stage before, in our order of values
            parts[1] = str(int(parts[1]) - 1)
        original["backbone." + ".".join(parts)] = value
    load(randomise(other), {"state_dict": original}, tmp_path / "layers.pth", strict=True)
    assert_equal(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("wrap", [None, "state_dict"])
def test_torchvision_resnet(tiny_cfg, tmp_path, caplog, norm, wrap):
    backbone = "build_resnet_fpn_backbone"
    model, other = build(tiny_cfg, backbone, *SMALL_RESNET50, "MODEL.RESNETS.NORM", norm)
    state = published(model)
    for name in [k for k in state if k.endswith("running_mean")]:
        state[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(7)
    state.update({"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)})
    caplog.set_level("INFO", "knet")
    load(other, {wrap: state} if wrap else state, tmp_path / "resnet.pth")
    assert_equal(backbone_of(model), backbone_of(other))
    said = caplog.records[-1].getMessage()
    assert caplog.records[-1].levelname == "INFO"  # the usual start
    assert "torchvision ResNet weights" in said and "2 classifier" in said
    assert "freshly initialised" in said and "heads.neck" in said
    assert ("num_batches_tracked" in said) == (norm == "FrozenBN")


def test_statistics_may_come_without_counters(tiny_cfg, tmp_path):
    model, other = build(tiny_cfg, "build_resnet_fpn_backbone", *SMALL_RESNET50)
    state = {k: v for k, v in published(model).items() if "num_batches_tracked" not in k}
    load(other, state, tmp_path / "resnet.pth")
    assert_equal(backbone_of(model), backbone_of(other), ["num_batches_tracked"])


def test_offsets_may_be_missing(tiny_cfg, tmp_path):
    model, other = build(tiny_cfg, "build_deform_resnet_fpn_backbone", *DCN)
    state = {k: v for k, v in published(model).items() if "offset" not in k}
    load(other, state, tmp_path / "resnet.pth")
    assert_equal(backbone_of(model), backbone_of(other), ["conv2_offset"])


@pytest.mark.parametrize("style", ["authors", "openmmlab"])
def test_swin_backbone(tiny_cfg, tmp_path, caplog, style):
    caplog.set_level("INFO", "knet")
    model, other = build(tiny_cfg, "build_swin_fpn_backbone", *SWIN)
    if style == "openmmlab":
        saved = {
            "meta": {},
            "state_dict": {f"backbone.{k}": v for k, v in published(model).items()},
        }
    else:
        state = {}
        for name, value in backbone_of(model).items():
            parts = name.split(".")
            if "downsample" in parts:
                parts[1] = str(int(parts[1]) - 1)
            if not parts[0].startswith("norm"):
                state[".".join(parts)] = value
        extra = ("norm.weight", "norm.bias", "head.weight", "head.bias",
                 "layers.0.blocks.1.attn_mask",
                 "layers.0.blocks.0.attn.relative_position_index")  # fmt: skip
        saved = {"model": {**state, **{name: torch.ones(4) for name in extra}}}
    load(other, saved, tmp_path / "swin.pth")
    lacks = ["norm0", "norm1.", "norm2.", "norm3"] if style == "authors" else []
    ours, theirs = backbone_of(model), backbone_of(other)
    top = {k for k in ours if k.startswith("norm")}
    assert all(torch.equal(ours[k], theirs[k]) for k in set(ours) - (top if lacks else set()))
    said = caplog.records[-1].getMessage()
    assert "Swin weights" in said and "attention masks and indices" in said
    assert ("4 classifier" in said) == (style == "authors")


def test_timm_model(tiny_cfg, tmp_path):
    timm = pytest.importorskip("timm")
    tiny_cfg.MODEL.TIMM.NAME = "resnet18"
    _, model = build(tiny_cfg, "build_timm_fpn_backbone")
    whole = randomise(timm.create_model("resnet18"))
    load(model, whole.state_dict(), tmp_path / "resnet18.pth")
    loaded = model.backbone.bottom_up.model.state_dict()
    assert_equal(loaded, {k: v for k, v in whole.state_dict().items() if k[:3] != "fc."})


def test_timm_safetensors(tiny_cfg, tmp_path):
    timm = pytest.importorskip("timm")
    tiny_cfg.MODEL.TIMM.NAME = "convnext_atto"
    _, model = build(tiny_cfg, "build_timm_fpn_backbone")
    whole = timm.create_model("convnext_atto")
    write_weights(tmp_path / "convnext.safetensors", whole.state_dict())
    KNetCheckpointer(model).load(str(tmp_path / "convnext.safetensors"))
    state = whole.state_dict()
    for name, value in model.backbone.bottom_up.model.state_dict().items():
        assert torch.equal(
            value, state[name.replace("stages_", "stages.").replace("stem_", "stem.")]
        )


def efficientnet_names(names):
    """timm's names of an EfficientNet as EfficientNet-PyTorch writes them, part by part."""
    top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1",
           "classifier": "_fc"}  # fmt: skip
    whole = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
             "conv_pwl": "_project_conv", "bn3": "_bn2"}  # fmt: skip
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv",
             "bn2": "_bn2"}  # fmt: skip
    blocks = sorted({tuple(map(int, n.split(".")[1:3])) for n in names if n[:7] == "blocks."})
    for name in names:
        part, *rest = name.split(".")
        if part == "blocks":
            stage, block, part, value = rest
            table = first if stage == "0" else whole
            yield f"_blocks.{blocks.index((int(stage), int(block)))}.{table[part]}.{value}"
        else:
            yield ".".join([top[part], *rest])


def test_efficientnet_pytorch(tiny_cfg, tmp_path, caplog):
    caplog.set_level("INFO", "knet")
    timm = pytest.importorskip("timm")
    tiny_cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    _, model = build(tiny_cfg, "build_timm_fpn_backbone")
    whole = randomise(timm.create_model("tf_efficientnet_lite0"))
    theirs = dict(zip(efficientnet_names(whole.state_dict()), whole.state_dict().values()))
    assert len(theirs) == 296
    load(model, theirs, tmp_path / "efficientnet-lite0.pth")
    assert "EfficientNet weights" in caplog.text and "left out: 8 classifier;" in caplog.text
    loaded = model.backbone.bottom_up.model.state_dict()
    assert_equal(loaded, {name: whole.state_dict()[name] for name in loaded})


def test_efficientnet_for_a_backbone_that_ends_earlier():
    pairs = {"backbone.model.conv_stem.weight": "_conv_stem.weight",
             "backbone.model.bn1.bias": "_bn0.bias"}  # fmt: skip
    ours = {name: torch.ones(2, 1) for name in pairs}
    theirs = {name: torch.full((2, 1), 3.0) for name in [*pairs.values(), "_blocks.0._bn1.bias"]}
    left_out = Counter()
    _, state = import_backbone(theirs, ours, left_out)
    assert state == {name: theirs[other] for name, other in pairs.items()}
    assert left_out == {"classifier": 0, "layers behind the last map": 1}


def test_efficientnet_of_another_size_or_for_another_backbone(tiny_cfg, tmp_path):
    timm = pytest.importorskip("timm")
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    theirs = dict(zip(efficientnet_names(state), state.values()))
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.NAME to build_timm_fpn_backbone"):
        load(build_model(tiny_cfg), theirs, tmp_path / "lite0.pth")
    tiny_cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite2"
    _, model = build(tiny_cfg, "build_timm_fpn_backbone")
    place = r"blocks\.1\.2\.conv_dw\.weight is \(144, 1, 3, 3\), the file has _blocks\.3\._depth"
    with pytest.raises(ValueError, match=rf"lite0\.pth: .*{place}.*MODEL\.TIMM\.NAME"):
        load(model, theirs, tmp_path / "lite0.pth")


@pytest.mark.parametrize("file", ["r50.pkl", "r50.pth"])
def test_detectron2_backbone(tiny_cfg, tmp_path, file):
    model, other = build(tiny_cfg, "build_resnet_fpn_backbone", *SMALL_RESNET50)
    state = {k: v.numpy() if file == "r50.pkl" else v for k, v in backbone_of(model).items()}
    if file == "r50.pkl":
        state["fc1000.weight"] = np.ones((3, 4), np.float32)
        state = {"model": state, "__author__": "torchvision", "matching_heuristics": True}
    load(other, state, tmp_path / file)
    assert_equal(backbone_of(model), backbone_of(other))


def test_own_safetensors(tiny_cfg, tmp_path):
    model, other = randomise(build_model(tiny_cfg)), build_model(tiny_cfg)
    write_weights(tmp_path / "knet.safetensors", model.state_dict())
    KNetCheckpointer(other, strict=True).load(str(tmp_path / "knet.safetensors"))
    assert_equal(model.state_dict(), other.state_dict())


def test_own_training_state_comes_back(tiny_cfg, tmp_path):
    class Trainer:
        state = {"best": np.float64(0.25), "seed": 3}

        def state_dict(self):
            return self.state

        def load_state_dict(self, state):
            self.loaded = state

    model, trainer = randomise(build_model(tiny_cfg)), Trainer()
    KNetCheckpointer(model, str(tmp_path), trainer=trainer).save("model_final", iteration=4)
    other = build_model(tiny_cfg)
    rest = KNetCheckpointer(other, str(tmp_path), trainer=trainer).resume_or_load("", resume=True)
    assert trainer.loaded == trainer.state and rest["iteration"] == 4
    assert_equal(model.state_dict(), other.state_dict())


def test_another_depth_is_refused_in_training(tiny_cfg, tmp_path):
    model, other = build(tiny_cfg, "build_resnet_fpn_backbone", *SMALL_RESNET50)
    state = published(model)
    deeper = {**state, "layer3.6.conv1.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"res4\.6\.conv1\.weight \(unknown\).*RESNETS\.DEPTH"):
        load(other, deeper, tmp_path / "deeper.pth")
    shallower = {k: v for k, v in state.items() if not k.startswith("layer3.5")}
    with pytest.raises(ValueError, match=r"res4\.5\.\S+ \(missing\).*RESNETS\.DEPTH"):
        load(other, shallower, tmp_path / "shallower.pth")


def test_weights_that_are_not_finite_are_named(tiny_cfg, tmp_path):
    model = build_model(tiny_cfg)
    state = dict(model.state_dict())
    bad = ["heads.kernel_head.init_kernels.weight", "heads.rounds.2.mask_predictor.bias"]
    for name, value in zip(bad, (float("nan"), float("inf"))):
        state[name] = torch.full_like(state[name], value)
    with pytest.raises(ValueError, match=rf"bad\.pth: 2 of \d+ weights are not finite.*{bad[0]}:"):
        load(model, {"model": state}, tmp_path / "bad.pth")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"rpn_head.rpn_conv.weight": torch.ones(1)}, "not of K-Net: 1 of 1 weights.*rpn_conv"),
        ({"blob.weight": torch.ones(1)}, "no kind that is known here.*blob.weight"),
        ({"epoch": 3}, "no weights found: the file holds a dict of 'epoch'"),
        ([1, 2], "no weights found: the file holds a list"),
        ({"model": {"a": "b"}}, "a is a str, not a tensor"),
    ],
)
def test_files_without_our_weights(tiny_cfg, tmp_path, saved, message):
    with pytest.raises(ValueError, match=r"other\.pth: .*" + message):
        load(build_model(tiny_cfg), saved, tmp_path / "other.pth")


def test_a_model_of_another_task_is_refused(tiny_cfg, semantic_cfg, tmp_path):
    semantic, _ = build(semantic_cfg, "build_resnet_v1c_backbone", *SMALL_RESNET50)
    state = export_published(semantic.state_dict())
    with pytest.raises(ValueError, match=r"another model.*semantic K-Net.*KERNEL_HEAD"):
        load(build_model(tiny_cfg), {"state_dict": state}, tmp_path / "semantic.pth")


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_openmmlab_swin_for_a_plain_backbone(semantic_cfg, tmp_path, prefix):
    """Some of its names are ours too, where there is no FPN in between."""
    model, other = build(semantic_cfg, "build_swin_backbone", *SWIN)
    source = {
        (prefix + k.removeprefix("backbone.")): v
        for k, v in export_published(model.state_dict()).items()
        if k.startswith("backbone.")
    }
    assert any(".attn.w_msa." in name for name in source)
    load(other, {"state_dict": source}, tmp_path / "swin.pth")
    assert_equal(backbone_of(model), backbone_of(other))


def test_imagenet_models_of_caffe2(tiny_cfg, tmp_path, caplog):
    model, _ = build(tiny_cfg, "build_resnet_fpn_backbone", *SMALL_RESNET50)
    stem = model.backbone.bottom_up.state_dict()["stem.conv1.weight"]
    saved = {"conv1_w": np.full(stem.shape, 2.0, np.float32), "res_conv1_bn_s": np.ones(16, "f4"),
             "res_conv1_bn_b": np.ones(16, "f4")}  # fmt: skip
    for name, value in model.backbone.bottom_up.state_dict().items():
        if name.startswith("res2.0.conv1.weight"):
            saved["res2_0_branch2a_w"] = value.numpy() * 0 + 3
    # a file of three layers is not a whole backbone, but it is known for what it is
    with pytest.raises(ValueError, match="Caffe2 weights"):
        load(model, saved, tmp_path / "R-50.pkl")


def test_imagenet_weights_lose_their_classifier():
    state = {"stem.0.weight": torch.ones(1), "layer4.2.bn3.bias": torch.ones(1),
             "layer2.0.downsample.0.weight": torch.ones(1), "fc.weight": torch.ones(1)}  # fmt: skip
    left_out = Counter()
    kind, ours = import_backbone(state, {"backbone.stem.conv1.weight": torch.ones(1)}, left_out)
    assert kind == "ResNet-V1c weights" and left_out == {"classifier": 1}
    assert set(ours) == {
        "backbone.stem.conv1.weight", "backbone.res5.2.conv3.norm.bias",
        "backbone.res3.0.shortcut.weight",
    }  # fmt: skip
