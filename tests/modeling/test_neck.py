"""The published neck."""

import pytest
import torch

from knet.modeling.neck import SemanticFPNNeck


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_neck_fuses_at_the_second_stride(levels):
    neck = SemanticFPNNeck(
        in_channels=[8 * (i + 1) for i in range(levels)], hidden_dim=16, norm_groups=4, conv_std=1
    )
    maps = [torch.randn(2, 8 * (i + 1), 48 >> i, 32 >> i) for i in range(levels)]
    for out in neck(maps):
        assert out.shape == (2, 16, 24, 16)
        assert out.min() >= 0  # both end in a ReLU
    # p2: one convolution, p3: one, p4: two, p5: three
    assert [len(level) for level in neck.levels] == [1, 1, 2, 3][:levels]


def test_neck_needs_matching_maps():
    neck = SemanticFPNNeck(in_channels=[8, 8], hidden_dim=16, norm_groups=4, conv_std=1)
    with pytest.raises(ValueError, match="expected 2 feature maps, got 1"):
        neck([torch.zeros(1, 8, 4, 4)])


def test_neck_gives_levels_for_rounds_at_their_own_stride():
    neck = SemanticFPNNeck(in_channels=[8, 12, 16, 20], hidden_dim=16, norm_groups=4, conv_std=1)
    maps = [torch.randn(2, 8 + 4 * i, 48 >> i, 32 >> i) for i in range(4)]
    localising, classifying = neck(maps)
    neck.round_levels = (3, 1, 3)
    *outputs, levels = neck(maps)
    assert torch.equal(outputs[0], localising) and torch.equal(outputs[1], classifying)
    assert [tuple(x.shape) for x in levels] == [(2, 16, 6, 4), (2, 16, 24, 16), (2, 16, 6, 4)]
    top = maps[3] + neck.position_encoding(maps[3])
    torch.testing.assert_close(levels[0], neck.levels[3][0](top))
    torch.testing.assert_close(levels[1], neck.levels[1][0](maps[1]))


def test_levels_for_rounds_are_no_finer_than_the_masks():
    with pytest.raises(ValueError, match=r"no finer than the masks' \(1\): not from \[2, 0\]"):
        SemanticFPNNeck(in_channels=[8, 8, 8], hidden_dim=16, norm_groups=4, round_levels=[2, 0])
