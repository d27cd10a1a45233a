"""Class probabilities of semantic models, quality of masks."""

import pytest
import torch
import torch.nn.functional as F

from knet.modeling import predictions
from knet.modeling.predictions import Frame, MaskPredictions, PixelPredictions


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


def test_mask_quality_is_the_mean_probability_inside_the_image():
    probabilities = torch.tensor(
        [[[0.9, 0.5, 1.0], [0.4, 0.7, 1.0], [1.0, 1.0, 1.0]], [[0.4] * 3, [0.1] * 3, [0.9] * 3]]
    )
    # 12 pixels of 4 rows each; the image ends in the second row and the second column
    frame = Frame((12, 12), (7, 8))
    ready = MaskPredictions(torch.rand(2, 2), probabilities, frame, are_logits=False)
    expected = torch.tensor([(0.9 + 0.5 + 0.7) / 3, 0.0])
    torch.testing.assert_close(ready.mask_quality(), expected)
    logits = probabilities.logit(eps=1e-6).clamp(-20, 20) + 1e-6  # 0.5 stays inside
    for upsample in (1, 2):
        found = MaskPredictions(torch.rand(2, 2), logits, frame, upsample).mask_quality()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_mask_quality_of_many_masks_is_that_of_each(monkeypatch):
    masks = torch.randn(7, 5, 6)
    frame = Frame((20, 24), (17, 24))

    def quality(these):
        return MaskPredictions(torch.rand(len(these), 3), these, frame).mask_quality()

    expected = torch.cat([quality(masks[k : k + 1]) for k in range(7)])
    monkeypatch.setattr(predictions, "_MASKS_AT_A_TIME", 3)
    assert torch.equal(quality(masks), expected) and len(expected.unique()) == 7
