"""Losses in parts equal the plain ones, values and gradients."""

import pytest
import torch
from detectron2.modeling import build_model

from knet.accel import accelerate
from knet.accel.streamed_losses import StreamedPixels
from knet.modeling.knet import KNet
from knet.modeling.losses import AllPixels, RecomputedPixels, SampledPoints


def _same(compute, maps, **tolerance):
    """Value and gradients of every sum that `compute` gives."""
    maps.requires_grad_()
    found, wanted = (compute(places) for places in (StreamedPixels(), AllPixels()))
    torch.testing.assert_close(found, wanted, **tolerance)
    factors = torch.randn_like(wanted)
    gradients = (torch.autograd.grad((factors * sums).sum(), maps)[0] for sums in (found, wanted))
    torch.testing.assert_close(*gradients, **tolerance)


# 700 masks of 48x48 need more than one part
@pytest.mark.parametrize("count, scale", [(7, 1), (7, 2), (7, 3), (700, 2), (0, 2)])
def test_mask_sums(count, scale):
    objects = (torch.rand(9, 24 * scale, 24 * scale) * 4).round().half() / 4
    rows = torch.randint(0, 9, (count,))
    logits = torch.randn(count, 24, 24) * 4
    _same(lambda places: places.mask_sums(logits, objects, rows), logits)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_class_sum(scale):
    labels = torch.randint(0, 6, (2, 3 * scale, 4 * scale))
    logits = torch.randn(2, 5, 3, 4) * 3
    _same(lambda places: places.class_sum(logits, labels), logits)


# 40 masks of 256x256 need more than one part
@pytest.mark.parametrize(
    "kernels, size, scale", [(5, (6, 4), 1), (5, (6, 4), 2), (0, (6, 4), 2), (40, (128, 128), 2)]
)
def test_owner_sum(kernels, size, scale):
    owners = torch.randint(-1, max(kernels, 1), (2, size[0] * scale, size[1] * scale))
    if not kernels:
        owners.fill_(-1)
    logits = torch.randn(2, kernels, *size) * 5
    _same(lambda places: places.owner_sum(logits, owners), logits, rtol=1e-4, atol=1e-5)


def test_overlaps_of_many_masks():
    masks, objects = torch.randn(2, 900, 20, 20), torch.rand(2, 11, 40, 40).round().half()
    for found, wanted in zip(
        *(p.overlaps(masks, objects) for p in (StreamedPixels(), AllPixels()))
    ):
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted))


@pytest.mark.parametrize("num_points", [0, 50])
def test_accelerate_streams_every_sum_over_all_pixels(tiny_cfg, num_points):
    tiny_cfg.MODEL.KNET.LOSS.NUM_POINTS = num_points
    model = build_model(tiny_cfg)
    places = accelerate(model).criterion.places
    assert isinstance(places.dense if num_points else places, StreamedPixels)
    assert isinstance(places, SampledPoints if num_points else StreamedPixels)


def test_a_gpu_may_recompute_losses(tiny_cfg, monkeypatch):
    monkeypatch.setattr(KNet, "device", torch.device("cuda"))
    places = accelerate(build_model(tiny_cfg), graphs=0).criterion.places
    assert type(places) is AllPixels
    places = accelerate(build_model(tiny_cfg), graphs=0, recompute=("losses",)).criterion.places
    assert type(places) is RecomputedPixels
