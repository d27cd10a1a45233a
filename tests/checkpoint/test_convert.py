"""`knet convert`: there and back, and configs against the published models."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from knet.checkpoint.published_names import export_published
from knet.checkpoint.read_file import read_file
from knet_command import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "published_shapes.json").read_text())
INSTANCE = "configs/coco/instance/knet_r50_fpn_1x.yaml"


def convert(words):
    return main(["convert", *words])


def write(path, saved):
    path.write_text(json.dumps(saved))
    return str(path)


@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("instance", INSTANCE),
        ("panoptic", "configs/coco/panoptic/knet_r50_fpn_1x.yaml"),
        ("panoptic_r101", "configs/coco/panoptic/knet_r101_fpn_3x.yaml"),
        ("panoptic_swin_l", "configs/coco/panoptic/knet_swin_l_fpn_3x.yaml"),
        ("semantic_fcn", "configs/ade20k/semantic/knet_fcn_r50.yaml"),
        ("semantic_pspnet", "configs/ade20k/semantic/knet_pspnet_r50.yaml"),
        ("semantic_deeplabv3", "configs/ade20k/semantic/knet_deeplabv3_r50.yaml"),
        ("semantic_upernet", "configs/ade20k/semantic/knet_upernet_r50.yaml"),
        ("semantic_upernet_swin_t", "configs/ade20k/semantic/knet_upernet_swin_t.yaml"),
        ("semantic_upernet_swin_l", "configs/ade20k/semantic/knet_upernet_swin_l.yaml"),
        ("semantic_upernet_swin_l", "configs/ade20k/semantic/knet_upernet_swin_l_640.yaml"),
    ],
)
def test_configs_build_the_published_models(tmp_path, capsys, task, config):
    shapes = write(tmp_path / "shapes.json", GOLDEN[task])
    assert convert(["--check", shapes, "--config-file", str(ROOT / config)]) == 0
    total = f"{GOLDEN[task]['num_params']:,}"
    assert capsys.readouterr().out.splitlines() == [
        "missing: 0", "unexpected: 0", "mismatched: 0",
        f"parameters: published {total}, ours {total}",
    ]  # fmt: skip


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_deformable_models_add_the_offsets(tmp_path, capsys, task):
    """DCNv1 adds 2 x 9 offsets to each 3x3 convolution of c3 to c5; all else is the R101 list."""
    parameters = dict(GOLDEN["panoptic_r101"]["parameters"])
    if task == "instance":  # heads of the instance model over the backbone of the other
        parameters = {k: v for k, v in parameters.items() if k.startswith(("backbone.", "neck."))}
        heads = GOLDEN["instance"]["parameters"].items()
        parameters |= {k: v for k, v in heads if not k.startswith(("backbone.", "neck."))}
    for name, (_, width, *_) in list((k, v) for k, v in parameters.items() if len(v) == 4):
        if re.fullmatch(r"backbone\.layer[234]\.\d+\.conv2\.weight", name):
            offset = name.replace("conv2.weight", "conv2.conv_offset")
            parameters[f"{offset}.weight"] = [18, width, 3, 3]
            parameters[f"{offset}.bias"] = [18]
    shapes = write(tmp_path / "shapes.json", {"parameters": parameters})
    config = ROOT / "configs" / "coco" / task / "knet_r101_dcn_fpn_3x.yaml"
    assert convert(["--check", shapes, "--config-file", str(config)]) == 0
    assert capsys.readouterr().out.startswith("missing: 0\nunexpected: 0\nmismatched: 0\n")


def test_differences_are_named(tmp_path, capsys):
    parameters = dict(GOLDEN["instance"]["parameters"])
    parameters["roi_head.extra"] = [3]
    parameters["rpn_head.init_kernels.weight"] = [90, 256, 1, 1]
    del parameters["neck.lateral_convs.0.conv.bias"]
    shapes = write(tmp_path / "shapes.json", {"parameters": parameters})
    assert convert(["--check", shapes, "--config-file", str(ROOT / INSTANCE)]) == 1
    out = capsys.readouterr().out
    assert "missing: 1\n  roi_head.extra\n" in out
    assert "unexpected: 1\n  backbone.fpn_lateral2.bias\n" in out
    assert "init_kernels.weight: published (90, 256, 1, 1), ours (100, 256, 1, 1)" in out
    assert "ours 37,482,368" in out


def test_classes_of_unknown_data_sets_come_from_the_list(tmp_path, capsys):
    shapes = write(tmp_path / "shapes.json", GOLDEN["panoptic"])
    config = ["--config-file", str(ROOT / "configs/coco/panoptic/knet_r50_fpn_1x.yaml")  ,
              "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "()"]  # fmt: skip
    assert convert(["--check", shapes, *config]) == 0
    wrong = ["MODEL.KNET.NUM_THING_CLASSES", "7", "MODEL.KNET.NUM_STUFF_CLASSES", "0"]
    assert convert(["--check", shapes, *config, *wrong]) == 1
    assert "(133, 256), ours (7, 256)" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_semantic_file_there_and_back(tmp_path, semantic_cfg, capsys, suffix):
    semantic_cfg.merge_from_list(
        ["MODEL.BACKBONE.NAME", "build_resnet_v1c_backbone", "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
         "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
    )  # fmt: skip
    state = export_published(build_model(semantic_cfg).state_dict())
    source, ours, back = (str(tmp_path / n) for n in ("a.pth", f"b.{suffix}", "c.pth"))
    torch.save({"meta": {"CLASSES": list("abc")}, "state_dict": state}, source)
    assert convert([source, ours]) == 0
    assert convert([ours, back, "--to-openmmlab"]) == 0
    again = read_file(back)["state_dict"]
    assert set(again) == set(state) and all(torch.equal(again[k], v) for k, v in state.items())


def test_refusals(tmp_path, capsys):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    source, out = str(tmp_path / "bad.pth"), str(tmp_path / "out.pth")
    torch.save({"model": Malicious()}, source)
    assert convert([source, out]) == 2
    assert "--trust" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not Path(out).exists()
    torch.save({"heads.mine.weight": torch.ones(1)}, source)
    assert convert([source, out, "--to-openmmlab"]) == 2
    assert (
        "no published counterpart for 1 of 1 parameters: heads.mine.weight"
        in capsys.readouterr().err
    )
    assert convert([source, str(tmp_path / "out.zip")]) == 2
    assert ".pth or .safetensors" in capsys.readouterr().err
    assert convert([str(tmp_path / "lost.pth"), out]) == 2
    assert "lost.pth" in capsys.readouterr().err
    assert convert(["--check", "shapes.json"]) == 2
    assert "--check compares --config-file with a list" in capsys.readouterr().err
    assert convert([source]) == 2
    assert "name the weights to convert and the file to write" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_not_converted(tmp_path, capsys):
    state = {"rpn_head.init_kernels.weight": torch.full((3, 4, 1, 1), float("nan"))}
    torch.save({"state_dict": state}, tmp_path / "bad.pth")
    assert convert([str(tmp_path / "bad.pth"), str(tmp_path / "out.pth")]) == 2
    assert "1 of 1 weights are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()
