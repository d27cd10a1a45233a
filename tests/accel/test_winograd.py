"""Winograd's method rounds like a direct sum, and is taken where it pays alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from knet.accel.winograd import convolve, pays


def test_rounding_is_that_of_a_direct_sum():
    """The published width: errors are at most twice those of PyTorch's convolution."""
    x, weight = torch.randn(1, 256, 40, 60).relu(), 0.03 * torch.randn(256, 256, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    last = {"memory_format": torch.channels_last}
    ours, theirs = (
        convolve(x, weight, None),
        F.conv2d(x.to(**last), weight.to(**last), padding=1),
    )
    assert (ours - exact).square().mean() < 4 * (theirs - exact).square().mean()


def test_taken_where_it_pays():
    weight = torch.zeros(128, 128, 3, 3)
    large, small = torch.zeros(1, 128, 80, 80), torch.zeros(1, 128, 16, 16)
    assert pays(large, weight)
    assert not pays(small, weight)
    assert not pays(large[:, :64], weight[:, :64])
    assert not pays(large.bfloat16(), weight)
    assert not pays(large.to("meta"), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not pays(large, weight)
