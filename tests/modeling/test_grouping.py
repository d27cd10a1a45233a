"""Which pixels feed which kernel, their sums, and masks."""

import pytest
import torch

from knet.modeling.grouping import (
    convolve,
    exclusive_groups,
    gather_features,
    hard_groups,
    soft_groups,
)


@pytest.mark.parametrize("shape", [(1, 3, 8, 4, 5), (2, 7, 16, 9, 6), (3, 1, 4, 1, 1)])
def test_absorbed_transform_equals_literal_one(shape):
    b, n, c, h, w = shape
    x = torch.randn(b, c, h, w, dtype=torch.float64).float().requires_grad_()
    weight, bias = torch.randn(c, c, requires_grad=True), torch.randn(c, requires_grad=True)
    masks, kernels = torch.randn(b, n, h, w), torch.randn(b, n, c, requires_grad=True)

    transformed = torch.einsum("dc,bchw->bdhw", weight, x) + bias[:, None, None]
    literal_groups = torch.einsum("bnhw,bchw->bnc", (masks.sigmoid() > 0.5).float(), transformed)
    literal_masks = torch.einsum("bnc,bchw->bnhw", kernels, transformed)
    inputs = (x, weight, bias, kernels)
    seed = torch.randn_like(literal_groups), torch.randn_like(literal_masks)
    literal_grads = torch.autograd.grad([literal_groups, literal_masks], inputs, seed)

    groups, area = gather_features(x, hard_groups(masks))
    groups = groups @ weight.T + area[..., None] * bias
    ours = convolve(x, kernels @ weight, kernels @ bias)
    torch.testing.assert_close(groups, literal_groups, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours, literal_masks, rtol=1e-5, atol=1e-4)
    for a, b_ in zip(torch.autograd.grad([groups, ours], inputs, seed), literal_grads):
        torch.testing.assert_close(a, b_, rtol=1e-4, atol=1e-3)


def test_hard_groups_are_half_probability_and_carry_no_gradient():
    masks = torch.tensor([[[[-1.0, 0.0, 1e-6, 3.0]]]], requires_grad=True)
    groups = hard_groups(masks)
    assert groups.tolist() == [[[[False, False, True, True]]]]
    assert not groups.requires_grad


def test_soft_groups_share_every_pixel():
    groups = soft_groups(torch.randn(2, 5, 3, 4, requires_grad=True))
    torch.testing.assert_close(groups.sum(1), torch.ones(2, 3, 4))
    assert groups.requires_grad


def test_sums_stay_float32_under_autocast():
    x = torch.full((1, 4, 200, 200), 30.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, area = gather_features(x, torch.ones(1, 1, 200, 200, dtype=torch.bool))
    assert features.dtype == torch.float32
    assert features[0, 0, 0].item() == 1_200_000.0  # float16 ends at 65,504
    assert area.item() == 40_000.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exclusive_groups_give_every_pixel_to_its_highest_mask(dtype):
    masks = torch.tensor([[[-3.0, 2.0, -1.0, 0.5]], [[-2.0, 5.0, -1.0, 0.0]], [[-4.0, 0, -1, 1]]])
    groups = exclusive_groups(masks[None].to(dtype).requires_grad_())[0, :, 0]
    assert groups[:, 0].tolist() == [False, True, False]  # also where no mask reaches one half
    assert groups[:, 1].tolist() == [False, True, False]  # though another mask does, too
    assert groups[:, 2].sum() == 1  # of equal ones
    assert groups[:, 3].tolist() == [False, False, True]
    assert groups.dtype == torch.bool and not groups.requires_grad


def test_exclusive_groups_add_up_to_all_pixels_of_their_own_image():
    masks, x = torch.randn(3, 7, 5, 6), torch.randn(3, 4, 5, 6)
    masks[1, 2:] = 0.5  # ties
    features, areas = gather_features(x, exclusive_groups(masks))
    assert areas.sum(1).tolist() == [30.0] * 3
    torch.testing.assert_close(features.sum(1), x.sum((2, 3)))
    alone = gather_features(x[1:2], exclusive_groups(masks[1:2]))[0]
    torch.testing.assert_close(features[1:2], alone)
