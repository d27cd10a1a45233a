"""Convolutions computed in faster ways give the same, and where they do not fit nothing changes."""

from __future__ import annotations

import copy

import detectron2.layers as d2
import torch
import torch.nn.functional as F
from torch import nn

from knet.modeling.fast_convolutions import (
    Conv3x3,
    Detectron2Conv3x3,
    use_fast_convolutions,
    use_usual_convolutions,
)


def test_modules_are_changed_and_changed_back():
    model = nn.Sequential(
        d2.Conv2d(128, 128, 3, padding=1, norm=nn.BatchNorm2d(128), activation=F.relu),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(128, 128, 1),
    ).eval()
    plain, kinds = copy.deepcopy(model), [type(m) for m in model]
    use_fast_convolutions(model)
    assert [type(m) for m in model] == [Detectron2Conv3x3, Conv3x3, Conv3x3, *kinds[3:]]
    assert list(model.state_dict()) == list(plain.state_dict())
    x = torch.randn(1, 128, 80, 80)
    with torch.no_grad():
        assert not torch.equal(model(x), plain(x))  # else nothing was sped up
        torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-5)
    # gradients, too
    total, expected = (m(x.requires_grad_()).square().sum() for m in (model, plain))
    ours = torch.autograd.grad(total, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(plain.parameters()))
    for a, b in zip(ours, theirs):
        assert (a - b).norm() <= 1e-5 * b.norm()
    use_usual_convolutions(model)
    assert [type(m) for m in model] == kinds
    assert torch.equal(model(x), plain(x))


def test_models_use_them_unless_told_otherwise(tiny_cfg):
    from detectron2.modeling import build_model

    def kinds() -> set[type]:
        return {type(m) for m in build_model(tiny_cfg).modules()} & {Conv3x3, Detectron2Conv3x3}

    assert kinds() == {Conv3x3, Detectron2Conv3x3}
    tiny_cfg.MODEL.KNET.FAST_CONVOLUTIONS = False
    assert not kinds()
