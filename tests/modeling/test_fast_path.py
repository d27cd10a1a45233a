"""Folded batch norms and compiled inference give the same results, whatever happens to weights."""

import copy
import functools

import pytest
import torch
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from torch import nn

from knet.modeling.fast_path import fold_batch_norms
from knet.training.optimizer import build_optimizer


@pytest.fixture
def model(tiny_cfg):
    model = build_model(tiny_cfg).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training
            module.running_mean.normal_(std=0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model


def _plain(model, images):
    features = model.backbone(images)
    return model.heads([features[name] for name in model.in_features])[1][-1]


def _compare(model, images, tolerance=1e-4):
    with torch.no_grad():
        expected = _plain(model, images)
        found = model._rounds(images)[1][-1]
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_folding_removes_every_batch_norm_and_changes_nothing(model):
    folded = fold_batch_norms(model.backbone)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.backbone.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for name, map_ in folded(images).items():
            torch.testing.assert_close(map_, model.backbone(images)[name], rtol=1e-4, atol=1e-5)


def test_inference_follows_the_weights(model):
    images = torch.randn(2, 3, 64, 64)
    _compare(model, images)
    first = model._fast_path._folded
    with torch.no_grad():
        model.backbone.stem.conv1.weight.mul_(1.7)
    _compare(model, images)
    model.backbone.stem.conv1.weight.data = model.backbone.stem.conv1.weight * 2
    _compare(model, images)
    with torch.no_grad():
        model.backbone.stem.conv1.weight.data.mul_(0.5)  # torch does not count this
    model._fast_path.forget()
    _compare(model, images)
    state = {name: value * 0.9 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    _compare(model, images)
    assert model._fast_path._folded is first  # written over, so that compiled code stays valid
    model.backbone.stem.conv1.weight = nn.Parameter(model.backbone.stem.conv1.weight * 2)
    _compare(model, images)


def test_inference_follows_the_training(tiny_cfg):
    """The fused optimiser changes weights without counting; frozen statistics hide no change."""
    tiny_cfg.MODEL.KNET.FREEZE_NORM_STATS = True
    tiny_cfg.SOLVER.BASE_LR = 0.1
    model = build_model(tiny_cfg).eval()
    optimizer = build_optimizer(tiny_cfg, model)
    images = torch.randn(2, 3, 64, 64)
    _compare(model, images)
    before = _plain(model, images).masks
    for train in (True, False):  # some fine-tune in evaluation mode
        model.train(train)
        model._rounds(images)[1][-1].masks.square().mean().backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            assert not torch.allclose(_plain(model, images).masks, before)
        _compare(model, images, tolerance=1e-3)


def test_the_copy_is_no_part_of_the_model(model):
    names = set(model.state_dict())
    with torch.no_grad():
        model._rounds(torch.randn(1, 3, 32, 32))
    assert set(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.backbone.stem.conv1.weight.mul_(3)
    _compare(other, torch.randn(1, 3, 32, 32))
    _compare(model, torch.randn(1, 3, 32, 32))


def test_gradients_reach_the_backbone_itself(model):
    last = model._rounds(torch.randn(1, 3, 32, 32))[1][-1]
    last.masks.sum().backward()
    assert model.backbone.stem.conv1.weight.grad.abs().sum() > 0


def test_a_backbone_without_batch_norms_is_used_as_it_is(model):
    for module in model.backbone.modules():
        if isinstance(module, Conv2d):
            module.norm = None
    with torch.no_grad():
        model._rounds(torch.randn(1, 3, 32, 32))
    assert model._fast_path._folded is model.backbone


# of narrow maps, and of maps that Winograd's method takes, beyond and below its least size; all
# maps lie on one side of 20,480 numbers, where PyTorch changes convolutions
@pytest.mark.parametrize(
    "width, sizes",
    [(16, [(288, 288), (288, 352), (352, 288), (320, 384)]), (128, [(288, 320), (512, 480)])],
)
def test_one_graph_without_breaks_serves_all_sizes(tiny_cfg, monkeypatch, width, sizes):
    tiny_cfg.MODEL.KNET.COMPILE = True
    tiny_cfg.MODEL.KNET.HIDDEN_DIM = width
    model = build_model(tiny_cfg).eval()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=count))
    for size in sizes:
        # other orders of summation: a pixel at a mask's border may change sides
        _compare(model, torch.randn(1, 3, *size), 1e-2)
    assert len(graphs) == 1
    with torch.no_grad():
        model.backbone.stem.conv1.weight.mul_(2)
    _compare(model, torch.randn(1, 3, 384, 320), 1e-2)
    assert len(graphs) == 1
    torch._dynamo.reset()
