"""Matching."""

import itertools
import logging

import numpy as np
import pytest
import torch

from knet.modeling.losses import AllPixels
from knet.modeling.matcher import MaskMatcher


def cost_of(matcher, class_logits, mask_logits, labels, masks):
    """(N, G) of one image."""
    cost = matcher.mask_cost(AllPixels().overlaps(mask_logits[None], masks[None]))
    if class_logits is not None:
        cost = cost + matcher.class_cost(class_logits[None], labels[None])
    return cost[0].numpy()


def test_finds_the_cheapest_assignment():
    matcher = MaskMatcher()
    cost = torch.randn(5, 3).numpy()
    (match,) = matcher.match([cost])
    found = cost[match.kernels, match.objects].sum()
    best = min(
        sum(cost[k, g] for g, k in enumerate(kernels))
        for kernels in itertools.permutations(range(5), 3)
    )
    assert found.item() == pytest.approx(best.item())
    assert match.kernels.tolist() == sorted(match.kernels.tolist())


def test_cost_prefers_the_right_mask_and_class():
    masks = torch.zeros(2, 8, 8)
    masks[0, :4], masks[1, 4:] = 1, 1
    logits = (masks.flip(0) - 0.5) * 20  # kernel 0 shows object 1
    labels = torch.tensor([0, 1])
    matcher = MaskMatcher()
    (match,) = matcher.match([cost_of(matcher, None, logits, labels, masks)])
    assert match.objects.tolist() == [1, 0]
    same = (torch.ones(2, 8, 8) - 0.5) * 20
    classes = torch.tensor([[-5.0, 5.0], [5.0, -5.0]])
    (match,) = matcher.match([cost_of(matcher, classes, same, labels, masks)])
    assert match.objects.tolist() == [1, 0]


def test_no_objects_and_no_costs():
    matcher = MaskMatcher()
    cost = cost_of(matcher, None, torch.randn(4, 6, 6), torch.zeros(0).long(), torch.zeros(0, 6, 6))
    (match,) = matcher.match([cost])
    assert len(match.kernels) == len(match.objects) == 0
    assert matcher.match([]) == []


def test_a_random_subset_of_surplus_objects_is_trained_and_counted(caplog):
    matcher = MaskMatcher()
    assert matcher.subset(3, 3) is None and matcher.subset(0, 3) is None
    with caplog.at_level(logging.WARNING):
        subsets = [matcher.subset(7, 3) for _ in range(9)]
    assert all(len(s) == 3 and (np.diff(s) > 0).all() for s in subsets)
    assert len({tuple(s.tolist()) for s in subsets}) > 1
    messages = [r.getMessage() for r in caplog.records]
    assert "7 objects" in messages[0] and "3 kernels" in messages[0]
    assert len(messages) == 4  # at the 1st, 2nd, 4th and 8th time
    assert "seen 8 times" in messages[-1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_costs_are_matched_last_and_reported(value, caplog):
    cost = torch.tensor([[value, 1.0], [2.0, value], [3.0, 4.0]])
    with caplog.at_level(logging.WARNING):
        (match,) = MaskMatcher().match([cost.numpy()])
    pairs = set(zip(match.kernels.tolist(), match.objects.tolist()))
    assert pairs == {(0, 1), (1, 0)}
    assert "2 of 6 matching costs are not finite" in caplog.text


def test_saturated_half_precision_logits_stay_finite():
    logits = torch.full((3, 8, 8), 65504.0).half()
    masks = torch.ones(2, 8, 8)
    classes = torch.full((3, 2), -65504.0).half()
    cost = cost_of(MaskMatcher(), classes, logits, torch.tensor([0, 1]), masks)
    assert cost.dtype == np.float32 and np.isfinite(cost).all()
