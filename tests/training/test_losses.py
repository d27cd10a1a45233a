"""Losses against their definitions, written out."""

import pytest
import torch

from knet.training.losses import (
    class_focal_loss,
    dice_loss,
    focal_terms,
    mask_bce_loss,
    paint_owners,
    pixel_focal_loss,
    rank_loss,
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


def test_pixel_focal_loss_equals_one_hot_form():
    logits = torch.randn(2, 5, 3, 4, requires_grad=True)
    labels = torch.randint(0, 6, (2, 3, 4))
    positive, negative = focal_terms(logits, alpha=0.25, gamma=2)
    one_hot = torch.nn.functional.one_hot(labels, 6)[..., :5].permute(0, 3, 1, 2).bool()
    expected = torch.where(one_hot, positive, negative).sum()
    loss = pixel_focal_loss(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0]
    )


def test_dice_and_bce_at_their_ends():
    target = (torch.rand(3, 8, 8) > 0.5).float()
    perfect = (target - 0.5) * 100
    assert dice_loss(perfect, target).item() == pytest.approx(0, abs=1e-3)
    assert mask_bce_loss(perfect, target).item() == pytest.approx(0, abs=1e-3)
    assert dice_loss(-perfect, target).item() == pytest.approx(3, abs=1e-3)
    nothing = torch.zeros(0, 8, 8, requires_grad=True)
    assert dice_loss(nothing, nothing.detach()).item() == 0
    assert mask_bce_loss(nothing, nothing.detach()).item() == 0


def test_rank_loss_leaves_out_unowned_pixels():
    logits = torch.randn(1, 3, 2, 2)
    owners = torch.tensor([[[0, -1], [2, -1]]])
    log_p = logits.log_softmax(1)
    torch.testing.assert_close(rank_loss(logits, owners), -(log_p[0, 0, 0, 0] + log_p[0, 2, 1, 0]))
    assert rank_loss(logits, torch.full((1, 2, 2), -1)).item() == 0


def test_highest_value_owns_a_pixel():
    masks = torch.tensor([[[1.0, 0.25, 0.0]], [[0.0, 0.5, 0.0]], [[1.0, 1.0, 1.0]]])
    owners = paint_owners(masks, torch.tensor([0, 0, 1]), torch.tensor([4, 9, 2]), 3)
    assert owners.tolist() == [[[4, 9, -1]], [[2, 2, 2]], [[-1, -1, -1]]]
