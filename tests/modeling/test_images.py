"""Batches of images of several sizes; windows of large ones."""

import itertools

import pytest
import torch
from detectron2.structures import ImageList

from knet.modeling.images import SlidingWindow, normalised_batch, padded_size, slide, window_starts


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


@pytest.mark.parametrize("length", [1, 7, 31, 32, 33, 64, 100, 101])
@pytest.mark.parametrize("window, stride", [(1, 1), (7, 3), (32, 32), (32, 21), (32, 1), (64, 63)])
def test_starts_cover_everything(length, window, stride):
    starts = window_starts(length, window, stride)
    window = min(window, length)
    assert {i for s in starts for i in range(s, s + window)} == set(range(length))
    assert starts[0] == 0 and starts[-1] + window == length
    assert all(0 < b - a <= stride for a, b in itertools.pairwise(starts))


def test_starts_by_hand():
    assert window_starts(10, 4, 3) == [0, 3, 6]
    assert window_starts(11, 4, 3) == [0, 3, 6, 7]
    assert window_starts(4, 4, 3) == window_starts(3, 4, 3) == [0]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("size, stride", [((8, 8), (5, 8)), ((30, 4), (1, 3)), ((99, 99), (9, 9))])
def test_pixel_wise_predictor_is_not_changed(size, stride, batch_size):
    image = torch.randn(3, 21, 34)
    mixing = torch.randn(5, 3)
    batches = []

    def predict(windows):
        batches.append(len(windows))
        return torch.einsum("kc,nchw->nkhw", mixing, windows)

    out = slide(image, predict, SlidingWindow(size, stride, batch_size))
    torch.testing.assert_close(out, predict(image[None])[0], rtol=1e-5, atol=1e-5)
    assert max(batches) <= batch_size


def test_overlaps_are_averaged():
    values = iter([1.0, 4.0])
    out = slide(
        torch.zeros(3, 2, 6),
        lambda windows: torch.full((1, 1, 2, 4), next(values)),
        SlidingWindow((2, 4), (2, 2)),
    )
    assert out[0].tolist() == [[1, 1, 2.5, 2.5, 4, 4]] * 2


def test_sizes_of_a_config():
    assert SlidingWindow.from_sizes((), (), 1) is None
    window = SlidingWindow.from_sizes((512, 769), (), 4)
    assert (window.size, window.stride, window.batch_size) == ((512, 769), (341, 512), 4)
    assert SlidingWindow.from_sizes((1, 1), (), 1).stride == (1, 1)
