"""Kernels that start on places of their own, and rounds that add to the masks before them."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from knet.modeling.positions import PlaceEncoding, spread_places


@pytest.mark.parametrize("count", [1, 17, 300])
def test_places_are_spread_evenly(count):
    places = spread_places(count)
    assert places.shape == (count, 2)
    assert places.min() >= 0 and places.max() < 1
    distances = torch.cdist(places, places) + torch.eye(count) * 9
    assert distances.min() > 0.5 / count**0.5  # at random the nearest two of 300 almost touch
    # every quarter gets its share
    quarters = (places * 2).long().unique(dim=0, return_counts=True)[1]
    assert count < 4 or (quarters - count / 4).abs().max() < 0.15 * count + 1


@pytest.mark.parametrize("channels", [64, 256])
def test_first_masks_are_discs_that_cover_the_image(channels):
    encoding = PlaceEncoding(channels)
    height, width = 64, 96
    features = encoding(torch.zeros(2, channels, height, width))
    assert features.shape == (1, channels, height, width)
    masks = torch.einsum("nc,chw->nhw", encoding.kernels(spread_places(300)), features[0])
    inside = masks > 0
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in (height, width)), indexing="ij")
    for place, mask in zip(spread_places(300), inside):
        distance = (torch.stack([y, x], -1) - place).norm(dim=-1)
        assert mask[distance < 0.03].all()
        assert not mask[distance > 0.07].any()
    assert inside.any(0).float().mean() > 0.97
    assert masks.max() == pytest.approx(5, abs=0.2)


def test_places_are_as_exact_under_autocast():
    encoding, x = PlaceEncoding(64), torch.zeros(1, 64, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = encoding(x)
    assert torch.equal(rounded, encoding(x))


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match=r"HIDDEN_DIM is 15; MODEL\.KNET\.KERNEL_PLACES needs"):
        PlaceEncoding(15)


def test_semantic_models_refuse_places(semantic_cfg):
    semantic_cfg.MODEL.KNET.KERNEL_PLACES = True
    with pytest.raises(ValueError, match=r"MODEL\.KNET\.KERNEL_PLACES is for kernels of objects"):
        build_model(semantic_cfg)


def test_model_with_both(tiny_cfg):
    names = list(build_model(tiny_cfg).state_dict())
    knet = tiny_cfg.MODEL.KNET
    knet.KERNEL_PLACES = knet.RESIDUAL_MASKS = True
    model = build_model(tiny_cfg).eval()
    assert list(model.state_dict()) == names  # places are computed, not stored
    image = {"image": torch.rand(3, 96, 96) * 255}
    with torch.no_grad():
        initial, rounds, _ = model.trace([image])
    for output in rounds:  # before any training nothing is added
        torch.testing.assert_close(output.masks, initial.masks)
    expected = model.heads.kernel_head.places.kernels(spread_places(knet.NUM_KERNELS))
    torch.testing.assert_close(model.heads.kernel_head.init_kernels.weight.flatten(1), expected)
    # training moves what the rounds add
    parameter = model.heads.rounds[1].mask_predictor.weight
    model.train()
    masks = model.heads([f for f in model.backbone(torch.rand(1, 3, 96, 96)).values()])[1][1].masks
    masks.square().sum().backward()
    assert parameter.grad.abs().max() > 0
