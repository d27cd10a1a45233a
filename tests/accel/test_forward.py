"""Folded batch norms give the same results, whatever happens to weights; half types nearly."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from knet.accel import accelerate
from knet.accel.forward import fold_batch_norms
from knet.training.optimizer import build_optimizer


@pytest.fixture
def model(tiny_cfg):
    model = accelerate(build_model(tiny_cfg)).eval()
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
        found = model._last_round(images)
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
    with torch.no_grad():
        model.backbone.stem.conv1.weight.mul_(1.7)
    _compare(model, images)
    with torch.no_grad():
        model.backbone.stem.conv1.weight.data.mul_(0.5)  # torch does not count this
    model.inference.forget()
    _compare(model, images)
    state = {name: value * 0.9 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    _compare(model, images)
    model.backbone.stem.conv1.weight.data = model.backbone.stem.conv1.weight * 2
    _compare(model, images)
    unused = copy.deepcopy(model.backbone)
    model.backbone, unused = unused, model.backbone
    with torch.no_grad():
        model.backbone.stem.conv1.weight.mul_(0.3)
    _compare(model, images)
    model.backbone.stem.conv1.weight = nn.Parameter(model.backbone.stem.conv1.weight * 2)
    _compare(model, images)


def test_copies_outlive_inference_mode(model):
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        first = model._last_round(images).masks
    assert not first.is_inference()
    with torch.no_grad():
        model.backbone.stem.conv1.weight.mul_(1.7)
    _compare(model, images)


def test_inference_follows_the_training(tiny_cfg):
    """The fused optimiser changes weights without counting; frozen statistics hide no change."""
    tiny_cfg.MODEL.KNET.FREEZE_NORM_STATS = True
    tiny_cfg.SOLVER.BASE_LR = 0.1
    model = accelerate(build_model(tiny_cfg)).eval()
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
        model._last_round(torch.randn(1, 3, 32, 32))
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


def test_phases_of_places_are_not_rounded(tiny_cfg):
    tiny_cfg.MODEL.KNET.KERNEL_PLACES = True
    model = accelerate(build_model(tiny_cfg), dtype=torch.bfloat16).eval()
    with torch.no_grad():
        model._last_round(torch.randn(1, 3, 64, 64))
    x = torch.zeros(1, 16, 40, 60)
    _, heads = model.inference._copy
    found = heads.kernel_head.places(x.bfloat16())
    assert torch.equal(found, model.heads.kernel_head.places(x).bfloat16())


def test_a_backbone_without_batch_norms_is_used_as_it_is(model):
    for module in model.backbone.modules():
        if isinstance(module, Conv2d):
            module.norm = None
    with torch.no_grad():
        model._last_round(torch.randn(1, 3, 32, 32))
    assert model.inference._copy[0] is model.backbone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_round_and_no_more(model, dtype):
    images = torch.randn(1, 3, 64, 96)
    accelerate(model, dtype=dtype)
    with torch.no_grad():
        expected, last = _plain(model, images), model._last_round(images)
    assert last.masks.dtype == dtype
    assert last.class_logits.dtype == torch.float32  # what kernels go through
    for ours, theirs in zip(last, expected):
        error = (ours.float() - theirs).abs().mean() / theirs.abs().mean()
        assert 0 < error < 0.05
    # weights of the model itself stay, and so does what is trained
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model.train()
    assert model._rounds(images)[1][-1].masks.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_semantic_models_in_half_types(semantic_cfg, dtype):
    model = build_model(semantic_cfg).eval()
    image = {"image": torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)}
    (expected,) = model([image])
    accelerate(model, dtype=dtype)
    with torch.no_grad():
        (found,) = model([image])
    assert found["sem_seg"].dtype == torch.float32
    assert 0 < (found["sem_seg"] - expected["sem_seg"]).abs().max() < 0.02


class _Casts(TorchDispatchMode):
    """Counts casts of the tensors given."""

    def __init__(self, tensors):
        super().__init__()
        self.places, self.count = {t.data_ptr() for t in tensors}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.count += args[0].data_ptr() in self.places
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_weights_are_cast_once(model):
    images = torch.randn(1, 3, 64, 64)
    with _Casts(model.parameters()) as casts, torch.autocast("cpu", torch.bfloat16):
        _plain(model, images)
    assert casts.count > 50
    accelerate(model, dtype=torch.bfloat16)
    model._last_round(images)
    copies = [p for part in model.inference._copy for p in part.parameters()]
    with _Casts([*model.parameters(), *copies]) as casts:
        model._last_round(images)
    assert casts.count == 0
