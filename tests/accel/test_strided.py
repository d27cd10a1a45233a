"""The convolution of stride 2 with a gradient of its own is that of torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from knet.accel.strided import convolve_3x3_strided

# even and odd sides, a single pixel, several bands
SHAPES = [(2, 5, 7, 8, 8), (1, 3, 4, 7, 10), (2, 4, 4, 1, 1), (2, 96, 32, 61, 200)]


@pytest.mark.parametrize("batch, inputs, outputs, height, width", SHAPES)
@pytest.mark.parametrize("channels_last", [True, False])
def test_values_and_gradients(batch, inputs, outputs, height, width, channels_last):
    x = torch.randn(batch, inputs, height, width)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    leaves = (x, torch.randn(outputs, inputs, 3, 3), torch.randn(outputs))
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found = convolve_3x3_strided(*leaves)
    expected = F.conv2d(*exact, stride=2, padding=1)
    assert torch.equal(found, F.conv2d(*leaves, stride=2, padding=1))
    upstream = torch.randn(expected.shape)
    gradients = torch.autograd.grad(found, leaves, upstream)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, exact, upstream.double())):
        assert (ours - theirs).norm() <= 3e-6 * theirs.norm()


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_only_wanted_gradients_are_computed(needed):
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    x.requires_grad_(needed[0]), weight.requires_grad_(needed[1])
    convolve_3x3_strided(x, weight, None).sum().backward()
    assert (x.grad is not None, weight.grad is not None) == needed
