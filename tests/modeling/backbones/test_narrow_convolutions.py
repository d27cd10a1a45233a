"""Convolutions of few channels, on the kernels of another kind of processor."""

import os

import pytest

import knet  # noqa: F401  (before Detectron2)

# isort: split
import detectron2.layers as d2
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import nn

from knet.config import get_cfg_from_file
from knet.modeling.backbones.narrow_convolutions import pick_pixels_before_narrow_convolutions

from ...processes import call


def _train(opts):
    """Twice, on kernels that every x86 processor has, and that break for fewer than 8 channels."""
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"  # oneDNN reads it when it first computes something
    model = build_model(get_cfg_from_file("configs/shapes/instance.yaml", opts)).train()
    masks = torch.zeros(1, 192, 192, dtype=torch.bool)
    masks[:, 40:90, 40:90] = True
    target = Instances((192, 192), gt_masks=BitMasks(masks), gt_classes=torch.tensor([0]))
    batch = [{"image": torch.rand(3, 192, 192) * 255, "instances": target}] * 8
    for _ in range(2):
        sum(model(batch).values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    return "trained"


@pytest.mark.slow
def test_a_model_of_few_channels_trains(tiny_opts):
    opts = [*tiny_opts, "MODEL.SMALL_RESNET.CHANNELS", "[4, 6, 8, 16]", "DATASETS.TRAIN", "()",
            "DATASETS.TEST", "()", "MODEL.KNET.NUM_THING_CLASSES", "2",
            "MODEL.KNET.NUM_STUFF_CLASSES", "0"]  # fmt: skip
    # a broken backward pass kills the process
    assert call(_train, opts) == "trained"


def test_pixels_are_picked_without_another_result():
    convs = [
        d2.Conv2d(7, 5, 1, stride=2, norm=nn.BatchNorm2d(5), activation=torch.relu),
        nn.Conv2d(5, 16, 1, stride=(3, 2)),
        nn.Conv2d(16, 4, 1, stride=2),
    ]
    model = nn.Sequential(*convs).double()
    x = torch.randn(2, 7, 23, 30, dtype=torch.float64)
    expected, names = model(x), list(model.state_dict())
    for _ in range(2):  # the second time finds nothing to do
        pick_pixels_before_narrow_convolutions(model)
    assert [conv.stride for conv in convs] == [(1, 1), (1, 1), (2, 2)]  # 16 channels are enough
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), expected)
