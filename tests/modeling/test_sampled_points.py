"""Masks compared at sampled points."""

import torch
import torch.nn.functional as F

from knet.modeling.losses import AllPixels, SampledPoints, enlarge, sample


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
