"""A file in OpenMMLab's form, of the published size, made here from the published list."""

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.convert import convert_checkpoint
from knet.checkpoint.read_file import read_file
from knet.config import get_cfg_from_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


CONFIGS = {
    "instance": "coco/instance/knet_r50_fpn_1x",
    "panoptic": "coco/panoptic/knet_r50_fpn_1x",
    "panoptic_r101": "coco/panoptic/knet_r101_dcn_fpn_3x",
    "semantic_fcn": "ade20k/semantic/knet_fcn_r50",
    "semantic_upernet_swin_t": "ade20k/semantic/knet_upernet_swin_t",
}


def published_state(task):
    """Random weights of the published names and shapes; statistics beside the batch norms."""
    golden = json.loads((ROOT / "tests" / "golden" / "published_shapes.json").read_text())
    state = {}
    for name, shape in golden[task]["parameters"].items():
        fan_in = max(1, torch.Size(shape[1:]).numel())
        state[name] = torch.randn(shape) / fan_in**0.5
        layer = name.removesuffix("weight")
        if re.search(r"(\.bn\d?|stem\.[147]|downsample\.1)\.weight$", name):
            state[f"{layer}running_mean"] = torch.randn(shape) * 0.1
            state[f"{layer}running_var"] = torch.rand(shape) + 0.5
            state[f"{layer}num_batches_tracked"] = torch.tensor(1000)
        if task == "panoptic_r101" and re.search(r"layer[234]\.\d+\.conv2\.weight", name):
            state[f"{layer}conv_offset.weight"] = torch.randn(18, shape[1], 3, 3) * 0.01
            state[f"{layer}conv_offset.bias"] = torch.randn(18)
    return state


def outputs(model):
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        result = model.eval()([{"image": image, "height": 96, "width": 128}])[0]
    found = [result["sem_seg"]] if "sem_seg" in result else []
    if "instances" in result:
        instances = result["instances"]
        found += [instances.scores, instances.pred_classes, instances.pred_masks]
    return found


@pytest.mark.parametrize("task", list(CONFIGS))
def test_published_file_there_and_back(tmp_path, task):
    state = published_state(task)
    assert task != "instance" or len(state) == 502
    path = f"configs/{CONFIGS[task]}.yaml"
    source, ours, back = (tmp_path / n for n in ("knet.pth", "knet.safetensors", "back.pth"))
    torch.save({"meta": {"CLASSES": ("person",)}, "state_dict": state}, source)

    cfg = get_cfg_from_file(str(ROOT / path), ["MODEL.DEVICE", "cpu"])
    direct, converted = build_model(cfg), build_model(cfg)
    KNetCheckpointer(direct, strict=True).load(str(source))
    convert_checkpoint(str(source), ours, config_file=str(ROOT / path))
    KNetCheckpointer(converted, strict=True).load(str(ours))
    assert len(outputs(direct)[0])
    for a, b in zip(outputs(direct), outputs(converted)):
        assert torch.equal(a, b)

    convert_checkpoint(str(ours), back, to_openmmlab=True)
    again = read_file(str(back))
    assert set(again) == {"meta", "state_dict"}
    # what follows from the window size is computed anew
    exported = {k for k in again["state_dict"] if not k.endswith("relative_position_index")}
    assert exported == set(state)
    for name, value in state.items():
        other = again["state_dict"][name]
        assert other.dtype == value.dtype and torch.equal(other, value), name
