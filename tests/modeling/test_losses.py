"""Losses against their definitions, written out."""

import pytest
import torch
import torch.nn.functional as F

from knet.modeling.losses import (
    AllPixels,
    RecomputedPixels,
    class_focal_sum,
    cross_entropy_and_dice,
    focal_terms,
    owner_sum,
    pixel_focal_sum,
)


def test_focal_terms_by_hand():
    positive, negative = focal_terms(torch.zeros(1))
    assert positive.item() == pytest.approx(0.25 * 0.25 * 0.693147, rel=1e-5)
    assert negative.item() == pytest.approx(0.75 * 0.25 * 0.693147, rel=1e-5)
    big = torch.tensor([-1e4, 1e4])
    assert all(term.isfinite().all() for term in focal_terms(big))


def test_class_focal_sum_counts_background_as_negative_everywhere():
    logits, weights = torch.randn(3, 4), torch.rand(3, 4)
    positive, negative = focal_terms(logits)
    expected = (weights * negative).sum()
    expected += (weights * (positive - negative))[0, 2] + (weights * (positive - negative))[2, 0]
    loss = class_focal_sum(logits, torch.tensor([2, 4, 0]), weights)
    torch.testing.assert_close(loss, expected)


def test_pixel_focal_sum_equals_its_one_hot_form():
    logits, labels = torch.randn(2, 5, 3, 4) * 3, torch.randint(0, 6, (2, 3, 4))
    positive, negative = focal_terms(logits)
    one_hot = F.one_hot(labels, 6)[..., :5].permute(0, 3, 1, 2).bool()
    expected = torch.where(one_hot, positive, negative).sum()
    torch.testing.assert_close(pixel_focal_sum(logits, labels), expected)


def test_dice_and_bce_at_their_ends():
    target = (torch.rand(3, 64) > 0.5).float()
    perfect = (target - 0.5) * 100
    assert cross_entropy_and_dice(perfect, target).tolist() == pytest.approx([0, 0], abs=1e-3)
    assert cross_entropy_and_dice(-perfect, target)[1].item() == pytest.approx(3, abs=1e-3)


def test_owner_sum_leaves_out_unowned_pixels():
    logits = torch.randn(1, 3, 2, 2)
    log_p = logits.log_softmax(1)
    expected = -(log_p[0, 0, 0, 0] + log_p[0, 2, 1, 0])
    found = owner_sum(logits, torch.tensor([[[0, -1], [2, -1]]]))
    torch.testing.assert_close(found, expected)


def test_no_mask_costs_nothing_but_stays_in_the_graph():
    nothing = torch.zeros(0, 8, 8, requires_grad=True)
    sums = AllPixels().mask_sums(nothing, torch.zeros(0, 16, 16), torch.zeros(0).long())
    assert sums.tolist() == [0, 0]
    assert torch.autograd.grad(sums.sum(), nothing)[0].shape == (0, 8, 8)
    nothing = torch.zeros(2, 0, 8, 8, requires_grad=True)
    total = AllPixels().owner_sum(nothing, torch.full((2, 16, 16), -1))
    assert total.item() == 0
    assert torch.autograd.grad(total, nothing)[0].shape == (2, 0, 8, 8)


@pytest.mark.parametrize("name", ["mask_sums", "owner_sum", "class_sum"])
def test_recomputed_sums_are_the_same_and_keep_no_enlarged_map(name):
    torch.manual_seed(0)
    maps = torch.randn(*((2,) if name != "mask_sums" else ()), 5, 12, 16, requires_grad=True)
    if name == "mask_sums":
        rest = ((torch.rand(3, 24, 32) > 0.5).half(), torch.tensor([0, 2, 2, 1, 0]))
    else:
        rest = (torch.randint(0, 5, (2, 24, 32)),)
    kept: dict[type, int] = {}
    found = []
    for kind in (AllPixels, RecomputedPixels):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        ):
            total = getattr(kind(), name)(maps, *rest)
        kept[kind] = sum(sizes)
        found.append((total, *torch.autograd.grad(total.sum(), maps)))
    for ours, wanted in zip(*found):
        assert torch.equal(ours, wanted)
    assert kept[AllPixels] > 4 * maps.numel() > kept[RecomputedPixels]
