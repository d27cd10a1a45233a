"""Enlargement is bilinear interpolation, its transpose is the transpose, whatever the lines."""

from __future__ import annotations

import pytest
import torch

from knet.accel.bilinear import Enlargement
from knet.modeling.losses import enlarge

# doubled, as they are, tripled, to no multiple, one line, one column
SIZES = [
    ((5, 7), (10, 14)), ((5, 7), (5, 7)), ((3, 4), (9, 12)), ((4, 6), (7, 11)),
    ((1, 6), (2, 12)), ((6, 1), (12, 2)),
]  # fmt: skip


def _lines(enlargement: Enlargement) -> list[slice]:
    height = enlargement.small[0]
    if not enlargement.by_lines or height == 1:
        return [enlargement.all_lines]
    return [slice(0, 1), slice(1, height - 1), slice(height - 1, height)]


@pytest.mark.parametrize("small, large", SIZES)
@pytest.mark.parametrize("leading", [(3,), (2, 4), (0,), (2, 0)])
def test_pixels_are_those_of_an_interpolated_map(small, large, leading):
    maps, enlargement = torch.randn(*leading, *small), Enlargement(small, large)
    expected = enlarge(maps, large)
    for lines in [*_lines(enlargement), enlargement.all_lines]:
        pixels = enlargement.values(maps, lines)
        assert pixels.shape[:-1] == leading
        torch.testing.assert_close(pixels, enlargement.arrange(expected, lines))


@pytest.mark.parametrize("small, large", SIZES)
def test_every_pixel_comes_once(small, large):
    enlargement = Enlargement(small, large)
    numbers = torch.arange(large[0] * large[1]).view(1, *large)
    found = [enlargement.arrange(numbers, lines) for lines in _lines(enlargement)]
    assert torch.equal(torch.cat(found, dim=1).sort().values, numbers.flatten(1))


@pytest.mark.parametrize("small, large", SIZES)
def test_transpose(small, large):
    maps = torch.randn(2, 3, *small, dtype=torch.float32, requires_grad=True)
    enlargement = Enlargement(small, large)
    weights = torch.randn(2, 3, *large)
    total = torch.zeros(2, 3, *small)
    for lines in _lines(enlargement):
        enlargement.add_transposed(enlargement.arrange(weights, lines), lines, total)
    expected = torch.autograd.grad(enlarge(maps, large), maps, weights)[0]
    torch.testing.assert_close(total, expected)
