"""Convolutions computed in faster ways give the same, and where they do not fit nothing changes."""

from __future__ import annotations

import copy

import detectron2.layers as d2
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import nn

from knet.accel import accelerate, convolutions, winograd
from knet.accel.convolutions import (
    Conv3x3,
    Detectron2Conv3x3,
    convolve_3x3,
    use_fast_convolutions,
    use_usual_convolutions,
)
from knet.training.trainer import Trainer


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


def test_training_and_results_are_the_same(tiny_cfg, monkeypatch):
    """A whole model whose every 3x3 convolution goes the faster way."""
    monkeypatch.setattr(winograd, "_LEAST_TILES", 1)
    monkeypatch.setattr(winograd, "_LEAST_CHANNELS", 1)
    model = accelerate(build_model(tiny_cfg))
    state = copy.deepcopy(model.state_dict())
    loader = iter(Trainer.build_train_loader(tiny_cfg, seed=1))
    batch = next(loader)

    def run(model: nn.Module) -> tuple[dict, dict, dict]:
        model.train()
        losses = model(batch)
        # of a smooth function: matches and hard masks make the losses' own gradients jump
        features = model.backbone(torch.stack([x["image"].float() for x in batch]) / 100)
        initial, rounds = model.heads([features[name] for name in model.in_features])
        outputs = [initial.masks, *(r.masks for r in rounds), *(r.class_logits for r in rounds)]
        sum(output.square().mean() for output in outputs).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        with torch.no_grad():
            return losses, gradients, model.eval()([batch[0]])[0]

    calls = []
    whole = convolutions.convolve_3x3
    monkeypatch.setattr(
        convolutions,
        "convolve_3x3",
        lambda *a, stride: calls.append(stride) or whole(*a, stride=stride),
    )
    losses, gradients, results = run(model)
    assert set(calls) == {1, 2}
    count = len(calls)
    usual = build_model(tiny_cfg)
    usual.load_state_dict(state)
    wanted_losses, wanted, expected = run(usual)
    assert len(calls) == count
    for name, loss in wanted_losses.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=1e-6)
    for name, gradient in wanted.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name
    assert (results["panoptic_seg"][0] == expected["panoptic_seg"][0]).float().mean() > 0.999
    torch.testing.assert_close(results["sem_seg"], expected["sem_seg"], rtol=0, atol=1e-5)


def test_they_come_with_accelerate(tiny_cfg):
    model = build_model(tiny_cfg)
    assert not {type(m) for m in model.modules()} & {Conv3x3, Detectron2Conv3x3}
    accelerate(model)
    assert {Conv3x3, Detectron2Conv3x3} <= {type(m) for m in model.modules()}


# sides that are and are not multiples of 4 or 2, a single pixel, one smaller than a tile, several
# bands, several images
SHAPES = [
    (1, 16, 24, 13, 18), (2, 8, 8, 4, 4), (3, 5, 7, 3, 9), (1, 1, 1, 1, 1), (2, 64, 96, 101, 70),
    (2, 96, 32, 61, 200),
]  # fmt: skip


@pytest.mark.parametrize("batch, inputs, outputs, height, width", SHAPES)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_values_and_gradients(batch, inputs, outputs, height, width, channels_last, stride):
    x = torch.randn(batch, inputs, height, width)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    leaves = (x, torch.randn(outputs, inputs, 3, 3), torch.randn(outputs))
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found = convolve_3x3(*leaves, stride=stride)
    expected = F.conv2d(*exact, stride=stride, padding=1)
    if stride == 1:
        assert found.is_contiguous(memory_format=torch.channels_last)
    else:
        assert torch.equal(found, F.conv2d(*leaves, stride=2, padding=1))
    upstream = torch.randn(expected.shape)
    gradients = torch.autograd.grad(found, leaves, upstream)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for ours, theirs in zip([found, *gradients], [expected, *wanted]):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 3e-6 * theirs.abs().max()


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
@pytest.mark.parametrize("stride", [1, 2])
def test_only_wanted_gradients_are_computed(needed, stride):
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    x.requires_grad_(needed[0]), weight.requires_grad_(needed[1])
    convolve_3x3(x, weight, None, stride=stride).sum().backward()
    assert (x.grad is not None, weight.grad is not None) == needed
