"""A file in OpenMMLab's form, of the published size, made here from the published list."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.read_file import read_file
from knet.config import get_cfg_from_file

ROOT = Path(__file__).parents[2]
CONFIG = "configs/coco/instance/knet_r50_fpn_1x.yaml"


def published_state():
    """Random weights of the published names and shapes; statistics beside the batch norms."""
    golden = json.loads((ROOT / "tests" / "golden" / "published_shapes.json").read_text())
    state = {}
    for name, shape in golden["instance"]["parameters"].items():
        fan_in = max(1, torch.Size(shape[1:]).numel())
        state[name] = torch.randn(shape) / fan_in**0.5
        is_norm = name.startswith("backbone.") and len(shape) == 1
        if is_norm and name.endswith(".weight"):
            layer = name.removesuffix("weight")
            state[f"{layer}running_mean"] = torch.randn(shape) * 0.1
            state[f"{layer}running_var"] = torch.rand(shape) + 0.5
            state[f"{layer}num_batches_tracked"] = torch.tensor(1000)
    return state


def outputs(model):
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        result = model.eval()([{"image": image, "height": 96, "width": 128}])[0]["instances"]
    return result.scores, result.pred_classes, result.pred_masks


@pytest.fixture
def convert():
    return runpy.run_path(str(ROOT / "tools" / "convert_openmmlab_checkpoint.py"))["main"]


def test_published_file_there_and_back(tmp_path, convert, capsys):
    state = published_state()
    assert len(state) == 502
    source, ours, back = (tmp_path / n for n in ("knet.pth", "knet.safetensors", "back.pth"))
    torch.save({"meta": {"CLASSES": ("person",)}, "state_dict": state}, source)

    cfg = get_cfg_from_file(ROOT / CONFIG, ["MODEL.DEVICE", "cpu"])
    direct, converted = build_model(cfg), build_model(cfg)
    KNetCheckpointer(direct, strict=True).load(str(source))
    config = ["--config-file", str(ROOT / CONFIG)]
    assert convert([str(source), str(ours), *config]) == 0
    KNetCheckpointer(converted, strict=True).load(str(ours))
    assert len(outputs(direct)[0])
    for a, b in zip(outputs(direct), outputs(converted)):
        assert torch.equal(a, b)

    assert convert([str(ours), str(back), "--to-openmmlab"]) == 0
    again = read_file(str(back))
    assert set(again) == {"meta", "state_dict"}
    assert set(again["state_dict"]) == set(state)
    for name, value in state.items():
        other = again["state_dict"][name]
        assert other.dtype == value.dtype and torch.equal(other, value), name
