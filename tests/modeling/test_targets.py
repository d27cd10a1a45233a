"""Soft targets."""

import pytest
import torch
import torch.nn.functional as F

from knet.modeling.targets import (
    BatchTargets,
    build_targets,
    collate_class_maps,
    paint_masks,
    shrink_masks,
)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_shrinking_is_bilinear_interpolation(factor):
    masks = torch.rand(5, 24 * factor // 2 * 2, 8 * factor) > 0.5
    masks = masks[:, : masks.shape[1] // factor * factor]
    expected = F.interpolate(
        masks[None].float(), scale_factor=1 / factor, mode="bilinear", align_corners=False
    )[0]
    out = torch.full((5, *expected.shape[-2:]), 7, dtype=torch.float16)
    shrink_masks(masks, factor, out)
    assert torch.equal(out.float(), expected)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_what_lies_beyond_the_masks_is_background(factor):
    masks = torch.rand(3, 7, 13) > 0.3
    padded = F.pad(masks, (0, 24 - 13, 0, 12 - 7))
    expected, out = torch.empty(2, 3, 12 // factor, 24 // factor)
    shrink_masks(padded, factor, expected)
    shrink_masks(masks, factor, out)
    assert torch.equal(out, expected)


def test_targets_of_one_image():
    things = torch.zeros(2, 6, 10, dtype=torch.bool)
    things[0, :4, :4] = True
    sem_seg = torch.full((6, 10), 255)
    sem_seg[:, 4:] = 7
    sem_seg[:2, :4] = 3  # a thing's label is no stuff
    targets = build_targets(
        thing_labels=torch.tensor([3, 1]),
        thing_masks=things,
        sem_seg=sem_seg,
        stuff_ids=torch.tensor([5, 6, 7, 8]),
        stride=4,
    )
    assert targets.thing_labels.tolist() == [3, 1]
    assert targets.thing_masks[0].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert targets.thing_masks[1].sum() == 0
    assert targets.stuff_labels.tolist() == [2]
    # rows 4-7 sample rows 5 and 6, of which 6 is padding: coverage one half
    assert targets.stuff_masks.tolist() == [[[0, 1, 0.5], [0, 0.5, 0.25]]]
    batch = BatchTargets.collate([targets, targets], torch.device("cpu"), (3, 4))
    assert batch.masks.shape == (6, 3, 4) and torch.equal(batch.masks[3:, :2, :3], targets.masks)
    assert batch.masks[..., 3].sum() == batch.masks[:, 2].sum() == 0


def test_targets_without_objects_or_stuff():
    targets = build_targets(
        thing_labels=torch.zeros(0, dtype=torch.int64),
        thing_masks=torch.zeros(0, 8, 8, dtype=torch.bool),
        sem_seg=None,
        stuff_ids=torch.tensor([], dtype=torch.int64),
        stride=4,
    )
    assert targets.thing_masks.shape == (0, 2, 2) and targets.stuff_masks.shape == (0, 2, 2)


def test_padding_of_class_maps_is_ignored():
    maps = [torch.randint(0, 19, (5, 7)), torch.randint(0, 255, (8, 3)).byte()]
    target = collate_class_maps(maps, (8, 16), torch.device("cpu"))
    assert target.shape == (2, 8, 16) and target.dtype == torch.int64
    assert torch.equal(target[0, :5, :7], maps[0])
    assert torch.equal(target[1, :, :3], maps[1].long())
    assert (target[0, 5:] == 255).all() and (target[0, :, 7:] == 255).all()


def test_the_highest_value_of_an_image_owns_a_pixel():
    masks = torch.tensor([[[1, 0.25, 0, 0]], [[0, 0.5, 0, 0]], [[1, 1, 1, 0]], [[0, 0, 0.5, 1]]])
    images = torch.tensor([0, 0, 1, 1])
    painted = paint_masks(masks, torch.tensor([4, 9, 7, 1]), images, batch=3)
    assert painted.tolist() == [[[4, 9, -1, -1]], [[7, 7, 7, 1]], [[-1] * 4]]
    assert paint_masks(masks[:0], images[:0], images[:0], batch=1).tolist() == [[[-1] * 4]]
