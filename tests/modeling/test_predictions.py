"""Class probabilities of semantic models."""

import pytest
import torch
import torch.nn.functional as F

from knet.modeling.predictions import Frame, PixelPredictions


@pytest.mark.parametrize(
    "grid, padded, image, output",
    [
        ((12, 16), (48, 64), (48, 64), (48, 64)),
        ((12, 16), (48, 64), (41, 60), (75, 101)),
        ((48, 64), (48, 64), (48, 64), (48, 64)),
    ],
)
def test_probabilities_are_the_softmax_of_resized_logits(grid, padded, image, output):
    logits = torch.randn(5, *grid) * 4
    before = logits.clone()

    def resize(x, size):
        return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]

    expected = resize(resize(logits, padded)[:, : image[0], : image[1]], output).softmax(0)
    predictions = PixelPredictions(logits, Frame(padded, image))
    torch.testing.assert_close(predictions.probabilities(output), expected, rtol=0, atol=1e-6)
    assert torch.equal(logits, before)  # they may be asked for again
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = predictions.probabilities(output)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, predictions.probabilities(output))
