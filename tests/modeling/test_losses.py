"""Losses against their definitions, written out; at sampled points."""

import pytest
import torch
import torch.nn.functional as F

from knet.modeling.losses import (
    AllPixels,
    RecomputedPixels,
    SampledPoints,
    class_focal_sum,
    cross_entropy_and_dice,
    enlarge,
    focal_terms,
    owner_sum,
    pixel_focal_sum,
    sample,
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


def test_sampling_at_pixel_centres_reads_the_pixels():
    maps = torch.randn(3, 4, 6)
    y, x = torch.meshgrid((torch.arange(4) + 0.5) / 4, (torch.arange(6) + 0.5) / 6, indexing="ij")
    points = torch.stack([x, y], -1).flatten(0, 1)[None]
    torch.testing.assert_close(sample(maps[None], points)[0], maps.flatten(1))
    each = points.expand(3, -1, -1)
    torch.testing.assert_close(sample(maps[:, None], each)[:, 0], maps.flatten(1))
    assert sample(maps[None, :0], points).shape == (1, 0, 24)


def test_sampling_is_bilinear_enlargement_up_to_the_edges():
    maps = torch.randn(2, 4, 4)
    y, x = torch.meshgrid(*[(torch.arange(8) + 0.5) / 8] * 2, indexing="ij")
    points = torch.stack([x, y], -1).flatten(0, 1)[None]
    torch.testing.assert_close(sample(maps[None], points)[0], enlarge(maps, (8, 8)).flatten(1))


def test_uncertain_points_lie_where_the_mask_changes():
    ramp = (torch.linspace(-10, 10, 64)[None, None] * torch.ones(2, 64, 1)).contiguous()
    points = SampledPoints(400)._points(ramp)
    assert points.shape == (2, 400, 2)
    uncertain, spread = points[:, 100:, 0], points[:, :100, 0]
    assert (uncertain - 0.5).abs().max() < 0.3  # the middle half of 1,200 candidates, about
    assert (spread - 0.5).abs().max() > 0.4


def test_sampled_losses_estimate_the_dense_ones():
    masks = F.interpolate(torch.randn(6, 1, 6, 6) * 4, size=(40, 40), mode="bilinear")[:, 0]
    masks.requires_grad_()
    targets = (torch.rand(8, 5, 5) > 0.5).float()
    targets = F.interpolate(targets[None], scale_factor=16)[0].half()
    rows = torch.tensor([3, 0, 7, 5, 1, 2])
    dense = AllPixels()
    # without the preference for uncertain places the mean is that of the whole mask
    points = SampledPoints(4000, uncertain=0.0)
    size = targets.shape[-2:]
    expected = dense.mask_sums(masks, targets, rows) / torch.tensor([dense.count(size), 1])
    found = points.mask_sums(masks, targets, rows) / torch.tensor([points.count(size), 1])
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
    gradient = torch.autograd.grad(found.sum(), masks)[0]
    wanted = torch.autograd.grad(expected.sum(), masks)[0]
    cosine = F.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0)
    assert cosine > 0.8


def test_sampled_rank_loss_estimates_the_dense_one():
    masks = F.interpolate(torch.randn(2, 5, 6, 6) * 3, size=(24, 24), mode="bilinear")
    owners = F.interpolate(torch.randint(-1, 5, (2, 1, 6, 6)).float(), scale_factor=8)[:, 0].long()
    points = SampledPoints(6000)
    expected = AllPixels().owner_sum(masks, owners) / (2 * 48 * 48)
    found = points.owner_sum(masks, owners) / (2 * points.count((48, 48)))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_costs_see_one_set_of_points_an_image():
    objects = torch.eye(4)[:3].view(1, 3, 2, 2).repeat(2, 1, 1, 1)
    objects = F.interpolate(objects, scale_factor=8).half()  # a quarter of the image each
    masks = torch.cat([objects.float() * 200 - 100, torch.randn(2, 4, 16, 16)], dim=1)
    found = SampledPoints(50).overlaps(masks, objects)
    assert found.inner.shape == (2, 7, 3) and found.places == 50
    inner = found.inner.diagonal(dim1=1, dim2=2)
    # a mask that is its object meets it wherever it is looked at, but for the object's border
    torch.testing.assert_close(inner, found.mask_sum[:, :3], rtol=0.2, atol=0.5)


def test_a_model_trains_on_points(tiny_cfg):
    from detectron2.data import DatasetCatalog
    from detectron2.modeling import build_model

    from knet.data.mapper import KNetDatasetMapper

    tiny_cfg.MODEL.KNET.LOSS.NUM_POINTS = 64
    model = build_model(tiny_cfg).train()
    assert isinstance(model.criterion.places, SampledPoints)
    mapper = KNetDatasetMapper(tiny_cfg, is_train=True)
    losses = model([mapper(record) for record in DatasetCatalog.get("tiny_val")[:2]])
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is not None for p in model.parameters())
