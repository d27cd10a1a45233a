"""One pair of matrices against two interpolations and a crop."""

import pytest
import torch
import torch.nn.functional as F

from knet.modeling.resize import MaskResizer, bilinear_matrix


def literal(masks, padded, image, output):
    def interpolate(x, size):
        return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]

    return interpolate(interpolate(masks, padded)[:, : image[0], : image[1]], output)


@pytest.mark.parametrize(
    "grid, padded, image, output",
    [
        ((24, 32), (96, 128), (90, 122), (75, 101)),
        ((24, 32), (96, 128), (60, 100), (187, 245)),
        ((8, 8), (32, 32), (32, 32), (32, 32)),
        ((5, 7), (20, 28), (17, 28), (1, 3)),
        ((1, 1), (4, 4), (3, 2), (9, 9)),
    ],
)
def test_equals_two_interpolations(grid, padded, image, output):
    masks = torch.rand(6, *grid)
    resizer = MaskResizer(
        grid_size=grid, padded_size=padded, image_size=image, output_size=output,
        device=masks.device,
    )  # fmt: skip
    torch.testing.assert_close(
        resizer(masks), literal(masks, padded, image, output), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("size_in, size_out", [(7, 20), (20, 7), (304, 1216), (1, 5), (5, 1)])
def test_matrix_rows_are_weights(size_in, size_out):
    matrix = bilinear_matrix(size_in, size_out)
    torch.testing.assert_close(matrix.sum(1), torch.ones(size_out))
    assert matrix.min() >= 0 and (matrix > 0).sum(1).max() <= 2


@pytest.mark.parametrize("band", [1, 7, 64])
def test_stream_covers_the_chosen_kernels_in_chunks(band):
    logits = torch.randn(7, 6, 8)
    resizer = MaskResizer(
        grid_size=(12, 16), padded_size=(48, 64), image_size=(40, 60), output_size=(30, 40),
        device=logits.device, band=band, chunk_bytes=4 * 30 * 40 * 2,
    )  # fmt: skip

    def probabilities(index):
        return F.interpolate(logits[None, index], scale_factor=2, mode="bilinear")[0].sigmoid()

    chunks = list(resizer.stream([5, 1, 6], probabilities))
    assert [index for index, _ in chunks] == [[5, 1], [6]]
    expected = literal(probabilities([5, 1, 6]), (48, 64), (40, 60), (30, 40))
    torch.testing.assert_close(torch.cat([p for _, p in chunks]), expected, rtol=0, atol=1e-6)
