"""Batches of images of several sizes."""

import pytest
import torch
from detectron2.structures import ImageList

from knet.modeling.images import normalised_batch, padded_size


def test_sizes_are_rounded_up():
    assert padded_size((33, 64), 32) == (64, 64)
    assert padded_size((33, 64), 0) == (33, 64)


@pytest.mark.parametrize("sizes", [[(30, 40)], [(32, 64)], [(32, 64)] * 2, [(30, 40), (17, 63)]])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_batch_is_what_detectron2_makes_of_normalised_images(sizes, dtype):
    mean, std = torch.rand(3, 1, 1) * 100, torch.rand(3, 1, 1) + 50
    images = [torch.randint(0, 256, (3, *size)).to(dtype) for size in sizes]
    expected = ImageList.from_tensors([(x - mean) / std for x in images], 32).tensor
    largest = [max(side) for side in zip(*sizes)]
    found = normalised_batch(images, mean, std, padded_size(largest, 32))
    assert torch.equal(found, expected)
