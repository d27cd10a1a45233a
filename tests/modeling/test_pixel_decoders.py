"""Pixel decoders and the classifier behind them."""

import pytest
import torch
from torch import nn

from knet.modeling.semantic import (
    PIXEL_DECODERS,
    FCNDecoder,
    PixelClassifier,
    PyramidPooling,
    UPerDecoder,
)

WIDTHS = [16, 32, 48, 64]


def make(kind, channels=16):
    return PIXEL_DECODERS[kind](in_channels=WIDTHS, channels=channels, norm=nn.BatchNorm2d).eval()


def maps(height, width):
    """Four maps of an input of this size, strides 4 to 32, rounded up."""
    return [
        torch.randn(2, c, -(-height // s), -(-width // s)) for c, s in zip(WIDTHS, (4, 8, 16, 32))
    ]


@pytest.mark.parametrize("kind, stride", [("fcn", 32), ("psp", 32), ("aspp", 32), ("uper", 4)])
def test_size_of_the_output(kind, stride):
    out = make(kind, channels=32)(maps(128, 192))
    assert out.shape == (2, 32, 128 // stride, 192 // stride)
    assert out.min() >= 0 and out.max() > 0  # all end in a ReLU


@pytest.mark.parametrize("kind, used", [("fcn", [3]), ("psp", [3]), ("aspp", [3]),
                                        ("uper", [0, 1, 2, 3])])  # fmt: skip
def test_which_maps_count(kind, used):
    features = [x.requires_grad_() for x in maps(64, 96)]
    make(kind)(features).sum().backward()
    assert [i for i, x in enumerate(features) if x.grad is not None and x.grad.any()] == used


def test_uper_takes_any_sizes():
    features = [torch.randn(1, c, *size) for c, size in zip(WIDTHS, [(33, 47), (17, 24), (9, 12),
                                                                     (5, 6)])]  # fmt: skip
    assert make("uper")(features).shape == (1, 16, 33, 47)


def test_uper_needs_two_maps():
    with pytest.raises(ValueError, match=r"at least two maps, got 1.*IN_FEATURES"):
        UPerDecoder(in_channels=[16], channels=16, norm=nn.BatchNorm2d)


def test_pooling_averages_over_regions():
    pooling = PyramidPooling(16, 16, norm=nn.Identity, scales=(1, 2))
    for level in pooling.levels:
        level[1].conv.weight.data = torch.eye(16)[:, :, None, None]
    constant = torch.rand(1, 16, 1, 1).expand(1, 16, 7, 9)
    torch.testing.assert_close(pooling(constant), constant.repeat(1, 3, 1, 1))
    x = torch.rand(1, 16, 8, 8)
    out = pooling(x)
    assert torch.equal(out[:, :16], x)
    torch.testing.assert_close(out[0, 16:32, 3, 5], x.mean((0, 2, 3)))
    # a corner lies beyond the centres of the regions: the mean of its own
    torch.testing.assert_close(out[0, 32:, 0, 7], x[0, :, :4, 4:].mean((1, 2)))


def test_aspp_sees_as_far_as_its_dilations():
    decoder = make("aspp")
    nn.init.zeros_(decoder.image_pool[1].conv.weight)  # sees everything
    x = torch.randn(1, 64, 9, 101)
    x.requires_grad_()
    decoder([x])[0, :, 4, 50].sum().backward()
    columns = x.grad.abs().sum((0, 1, 2)).nonzero()[:, 0] - 50
    centres = {d * side for d in (0, 12, 24, 36) for side in (-1, 1)}
    # the last convolution looks one pixel further
    assert set(columns.tolist()) == {c + i for c in centres for i in (-1, 0, 1)}


def test_classifier_drops_channels_for_its_logits_only():
    body = FCNDecoder(in_channels=[16], channels=16, norm=nn.BatchNorm2d)
    model = PixelClassifier(body, channels=16, num_classes=5, dropout=1.0)
    nn.init.normal_(model.classifier.bias)
    x = [torch.randn(2, 16, 6, 7)]
    pixels, logits = model.train()(x)
    assert pixels.abs().sum() > 0
    assert torch.equal(logits, model.classifier.bias.view(-1, 1, 1).expand(2, 5, 6, 7))
    pixels, logits = model.eval()(x)
    torch.testing.assert_close(logits, model.classifier(pixels))


def test_published_initialisation():
    body = FCNDecoder(in_channels=[64], channels=64, norm=nn.BatchNorm2d)
    model = PixelClassifier(body, channels=64, num_classes=150, dropout=0.1)
    # Kaiming normal over the outputs of a 3x3 convolution
    expected = (2 / (64 * 9)) ** 0.5
    for conv in (body.convs[0].conv, body.concat.conv):
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.03)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.classifier.bias.any()
