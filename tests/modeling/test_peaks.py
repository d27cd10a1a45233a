"""Thing kernels that start on the peaks of a heat map of object centres."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling import build_model

from knet.modeling.layers import group_norm
from knet.modeling.neck import SemanticFPNNeck
from knet.modeling.peaks import PeakKernels, centre_focal_sum, centre_targets, highest_peaks


def _disc(size, centre, radius):
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in size), indexing="ij")
    return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2).float()


def test_peaks_come_before_their_neighbours():
    heat = torch.full((1, 1, 6, 8), -9.0)
    heat[0, 0, 1, 1], heat[0, 0, 1, 2], heat[0, 0, 4, 6] = 3.0, 2.0, 1.0
    assert highest_peaks(heat, 2).tolist() == [[1 * 8 + 1, 4 * 8 + 6]]
    assert sorted(highest_peaks(heat, 100)[0].tolist()) == list(range(48))  # no more than pixels


def test_a_centre_is_1_and_its_bell_grows_with_the_object():
    small, large = _disc((32, 48), (8.5, 10.5), 3), _disc((32, 48), (20.5, 30.5), 10)
    empty = torch.zeros(32, 48)
    maps = centre_targets(torch.stack([small, large, empty]), [2, 1, 0], (32, 48))
    assert maps.shape == (3, 32, 48)
    assert (maps[0] == 1).nonzero().tolist() == [[8, 10], [20, 30]]
    size = math.sqrt(large.sum())
    assert maps[0, 20, 33].item() == pytest.approx(math.exp(-9 / (2 * (size / 8) ** 2)), rel=1e-4)
    assert maps[0, 8, 13] < maps[0, 20, 33]
    assert maps[1:].max() == 0  # an object without a pixel, an image without an object
    # masks of twice the resolution
    finer = torch.nn.functional.interpolate(large[None, None], scale_factor=2.0)[0]
    torch.testing.assert_close(
        centre_targets(finer, [1], (32, 48))[0], centre_targets(large[None], [1], (32, 48))[0]
    )


def test_focal_loss_of_centres():
    heat, targets = torch.tensor([0.4, -1.0, -2.0]), torch.tensor([1.0, 0.5, 0.0])
    p = heat.sigmoid()
    expected = -(
        (1 - p[0]) ** 2 * p[0].log()
        + 0.5**4 * p[1] ** 2 * (1 - p[1]).log()
        + p[2] ** 2 * (1 - p[2]).log()
    )
    torch.testing.assert_close(centre_focal_sum(heat, targets), expected)


def test_first_masks_are_discs_around_the_peaks():
    peaks = PeakKernels(hidden_dim=64, num_kernels=2, num_test_kernels=5, norm=group_norm(8))
    peaks.init_weights(0.1)
    peaks.heat.weight.data.zero_()
    places = peaks.places(torch.zeros(1, 64, 40, 60))
    kernels, heat = peaks(torch.rand(1, 64, 40, 60), places)
    assert kernels.shape == (1, 2, 64)
    assert heat.sigmoid().unique().tolist() == pytest.approx([0.1])
    assert peaks.eval()(torch.rand(1, 64, 40, 60), places)[0].shape == (1, 5, 64)

    centre = torch.tensor([[12.5, 41.5]])
    mask = torch.einsum("nc,chw->nhw", peaks.places.kernels(centre), places[0])[0]
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(60) + 0.5, indexing="ij")
    distance = ((y - 12.5) ** 2 + (x - 41.5) ** 2).sqrt()
    assert (mask[distance <= 3] > 0).all()
    assert (mask[distance >= 6] < 0).all()


def test_model_with_peaks(tiny_cfg):
    knet = tiny_cfg.MODEL.KNET
    knet.KERNEL_PEAKS, knet.TEST.NUM_KERNELS = True, 3 * knet.NUM_KERNELS
    model = build_model(tiny_cfg).train()
    instances = _instances()
    image = {"image": torch.rand(3, 96, 96) * 255, "instances": instances}
    image["sem_seg"] = torch.full((96, 96), 255)
    losses = model([image, image])
    assert losses["loss_init_peak"] > 0
    sum(losses.values()).backward()
    head = model.heads.kernel_head
    assert head.peaks.heat.weight.grad.abs().max() > 0
    for layer in (head.peaks.refine, head.peaks.reshape):
        assert layer.weight.grad.abs().max() > 0
    with torch.no_grad():
        initial, rounds, _ = model.eval().trace([image])
    stuff = initial.masks.shape[1] - knet.TEST.NUM_KERNELS
    assert stuff == head.num_stuff_classes
    assert rounds[-1].masks.shape[1] == initial.kernels.shape[1] == initial.masks.shape[1]


def _instances():
    from detectron2.structures import BitMasks, Instances

    instances = Instances((96, 96))
    masks = torch.stack([_disc((96, 96), (30, 40), 12), _disc((96, 96), (60, 70), 9)]) > 0
    instances.gt_masks, instances.gt_classes = BitMasks(masks), torch.zeros(2, dtype=torch.int64)
    return instances


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"KERNEL_PEAKS": True, "KERNEL_PLACES": True}, "KERNEL_PEAKS is True; it is for"),
        ({"TEST.NUM_KERNELS": 50}, "TEST.NUM_KERNELS is 50; without KERNEL_PEAKS"),
    ],
)
def test_keys_that_do_not_fit(tiny_cfg, changes, message):
    for key, value in changes.items():
        tiny_cfg.merge_from_list([f"MODEL.KNET.{key}", value])
    with pytest.raises(ValueError, match=message):
        build_model(tiny_cfg)


@pytest.mark.parametrize(("level", "stride"), [(0, 4), (1, 8)])
def test_the_neck_keeps_the_stride_of_its_level(level, stride):
    neck = SemanticFPNNeck(in_channels=[8, 12, 16], hidden_dim=16, norm_groups=4, mask_level=level)
    maps = [torch.rand(1, c, 64 // s, 96 // s) for c, s in ((8, 4), (12, 8), (16, 16))]
    for out in neck(maps):
        assert out.shape == (1, 16, 64 // stride, 96 // stride)
    assert [len(convs) for convs in neck.levels] == ([1, 2, 3] if level == 0 else [1, 1, 2])
