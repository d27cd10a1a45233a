"""Losses against their definitions, written out."""

import pytest
import torch
import torch.nn.functional as F

from knet.training.enlarged import enlarged_sums
from knet.training.enlargement import enlarge
from knet.training.losses import (
    class_focal_loss,
    focal_terms,
    mask_losses,
    owner_loss,
    paint_owners,
    pixel_focal_loss,
)


def test_focal_terms_by_hand():
    positive, negative = focal_terms(torch.zeros(1), alpha=0.25, gamma=2)
    assert positive.item() == pytest.approx(0.25 * 0.25 * 0.693147, rel=1e-5)
    assert negative.item() == pytest.approx(0.75 * 0.25 * 0.693147, rel=1e-5)
    big = torch.tensor([-1e4, 1e4])
    assert all(term.isfinite().all() for term in focal_terms(big, alpha=0.25, gamma=2))


def test_class_focal_loss_counts_background_as_negative_everywhere():
    logits, weights = torch.randn(3, 4), torch.rand(3, 4)
    positive, negative = focal_terms(logits, alpha=0.25, gamma=2)
    expected = (weights * negative).sum()
    expected += (weights * (positive - negative))[0, 2] + (weights * (positive - negative))[2, 0]
    loss = class_focal_loss(logits, torch.tensor([2, 4, 0]), weights)
    torch.testing.assert_close(loss, expected)


def _same(ours, expected, logits, **tolerance):
    """Value and gradient of both."""
    torch.testing.assert_close(ours, expected, **tolerance)
    found, wanted = (
        torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, expected)
    )
    torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_pixel_focal_loss_equals_one_hot_form(scale):
    logits = (torch.randn(2, 5, 3, 4) * 3).requires_grad_()
    size = (3 * scale, 4 * scale)
    labels = torch.randint(0, 6, (2, *size))
    positive, negative = focal_terms(enlarge(logits, size), alpha=0.25, gamma=2)
    one_hot = F.one_hot(labels, 6)[..., :5].permute(0, 3, 1, 2).bool()
    expected = torch.where(one_hot, positive, negative).sum()
    ours = enlarged_sums(logits, size, pixel_focal_loss(labels), whole=True)[0]
    _same(ours, expected, logits)


def _mask_sums(logits, targets, size=None):
    size = size or targets.shape[-2:]
    return enlarged_sums(logits, size, mask_losses(lambda part: targets[part]), count=2)


# 700 masks of 48x48 need more than one part
@pytest.mark.parametrize(("count", "scale"), [(7, 1), (7, 2), (7, 3), (700, 2)])
def test_mask_losses_equal_their_plain_form(count, scale):
    logits = (torch.randn(count, 24, 24) * 4).requires_grad_()
    targets = (torch.rand(count, 24 * scale, 24 * scale) * 4).round() / 4
    cross_entropy, dice = _mask_sums(logits, targets.half())
    large = enlarge(logits, targets.shape[-2:])
    expected = F.binary_cross_entropy_with_logits(large, targets, reduction="sum")
    _same(cross_entropy, expected, logits)
    p = large.sigmoid()
    size = p.square().sum((1, 2)) + targets.square().sum((1, 2)) + 2e-3
    _same(dice, (1 - 2 * (p * targets).sum((1, 2)) / size).sum(), logits)


def test_each_sum_passes_its_own_gradient():
    logits = torch.randn(3, 8, 8, requires_grad=True)
    targets = (torch.rand(3, 16, 16) > 0.5).float()
    first, second = _mask_sums(logits, targets)
    separate = [torch.autograd.grad(s, logits, retain_graph=True)[0] for s in (first, second)]
    joined = torch.autograd.grad(2 * first - 3 * second, logits)[0]
    torch.testing.assert_close(joined, 2 * separate[0] - 3 * separate[1])


def test_dice_and_bce_at_their_ends():
    target = (torch.rand(3, 8, 8) > 0.5).float()
    perfect = (target - 0.5) * 100
    assert _mask_sums(perfect, target).tolist() == pytest.approx([0, 0], abs=1e-3)
    assert _mask_sums(-perfect, target)[1].item() == pytest.approx(3, abs=1e-3)


def test_no_mask_costs_nothing_but_stays_in_the_graph():
    nothing = torch.zeros(0, 8, 8, requires_grad=True)
    sums = _mask_sums(nothing, torch.zeros(0, 16, 16))
    assert sums.tolist() == [0, 0]
    assert torch.autograd.grad(sums.sum(), nothing)[0].shape == (0, 8, 8)
    nothing = torch.zeros(2, 0, 8, 8, requires_grad=True)
    terms = owner_loss(torch.full((2, 16, 16), -1))
    total = enlarged_sums(nothing, (16, 16), terms, whole=True)
    assert total.tolist() == [0]
    assert torch.autograd.grad(total.sum(), nothing)[0].shape == (2, 0, 8, 8)


@pytest.mark.parametrize("scale", [1, 2])
def test_owner_loss_is_cross_entropy_over_kernels(scale):
    logits = (torch.randn(2, 5, 6, 4) * 5).requires_grad_()
    owners = torch.randint(-1, 5, (2, 6 * scale, 4 * scale))
    expected = F.cross_entropy(
        enlarge(logits, owners.shape[-2:]), owners, ignore_index=-1, reduction="sum"
    )
    ours = enlarged_sums(logits, owners.shape[-2:], owner_loss(owners), whole=True)[0]
    _same(ours, expected, logits)


def test_owner_loss_leaves_out_unowned_pixels():
    logits = torch.randn(1, 3, 2, 2)
    terms = owner_loss(torch.tensor([[[0, -1], [2, -1]]]))
    log_p = logits.log_softmax(1)
    expected = -(log_p[0, 0, 0, 0] + log_p[0, 2, 1, 0])
    torch.testing.assert_close(enlarged_sums(logits, (2, 2), terms, whole=True)[0], expected)


def test_highest_value_owns_a_pixel():
    masks = torch.tensor([[[1.0, 0.25, 0.0, 0.0]], [[0.0, 0.5, 0.0, 0.0]], [[1.0, 1.0, 1.0, 0.0]]])
    owners = paint_owners(masks, torch.tensor([0, 1]), torch.tensor([4, 9]))
    assert owners.tolist() == [[4, 9, -1, -1]]
    owners = paint_owners(masks, torch.tensor([2, 0]), torch.tensor([1, 7]))
    assert owners.tolist() == [[7, 7, 1, -1]]
    assert paint_owners(masks, torch.tensor([]).long(), torch.tensor([])).tolist() == [[-1] * 4]


def test_owners_of_many_masks_are_painted_in_parts():
    masks = torch.rand(600, 64, 64) > 0.995
    rows = torch.randperm(600)
    values = torch.arange(600)
    expected = torch.where(masks[rows], values[:, None, None], -1).amax(0)
    assert torch.equal(paint_owners(masks.half(), rows, values), expected)
