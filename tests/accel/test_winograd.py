"""Winograd's method gives what a direct convolution gives, and is taken where it pays alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from knet.accel.winograd import convolve_3x3, pays


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).abs().max() / exact.abs().max())


# sides that are and are not multiples of 4, one smaller than a tile, several bands, several images
SHAPES = [
    (1, 16, 24, 13, 18), (2, 8, 8, 4, 4), (3, 5, 7, 3, 9), (1, 1, 1, 1, 1), (2, 64, 96, 101, 70),
]  # fmt: skip


@pytest.mark.parametrize("batch, inputs, outputs, height, width", SHAPES)
@pytest.mark.parametrize("channels_last", [True, False])
def test_values_and_gradients(batch, inputs, outputs, height, width, channels_last):
    x = torch.randn(batch, inputs, height, width)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    leaves = (x, torch.randn(outputs, inputs, 3, 3), torch.randn(outputs))
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, expected = convolve_3x3(*leaves), F.conv2d(*exact, padding=1)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative(found, expected) < 3e-6
    upstream = torch.randn(expected.shape)
    gradients = torch.autograd.grad(found, leaves, upstream)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, exact, upstream.double())):
        assert ours.shape == theirs.shape
        assert relative(ours, theirs) < 3e-6


def test_rounding_is_that_of_a_direct_sum():
    """The published width: errors are at most twice those of PyTorch's convolution."""
    x, weight = torch.randn(1, 256, 40, 60).relu(), 0.03 * torch.randn(256, 256, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    last = {"memory_format": torch.channels_last}
    ours, theirs = (
        convolve_3x3(x, weight, None),
        F.conv2d(x.to(**last), weight.to(**last), padding=1),
    )
    assert (ours - exact).square().mean() < 4 * (theirs - exact).square().mean()


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_only_wanted_gradients_are_computed(needed):
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    x.requires_grad_(needed[0]), weight.requires_grad_(needed[1])
    convolve_3x3(x, weight, None).sum().backward()
    assert (x.grad is not None, weight.grad is not None) == needed


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
