"""BiFPN: its weighted sums, which level reaches which output, and what is left out."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from knet.modeling.bifpn import BiFPNNeck, FusionLayer, FusionNode
from knet.modeling.layers import group_norm


def _identity(node):
    """Only the weighted sum of a node is left."""
    node.depthwise, node.pointwise = nn.Identity(), nn.Identity()


def _neck(levels=4, **arguments):
    widths = [8 + 4 * i for i in range(levels)]
    return BiFPNNeck(in_channels=widths, hidden_dim=16, norm_groups=4, conv_std=0.1, **arguments)


def _maps(levels=4, coarsest=(3, 5), batch=2):
    sizes = [[side << (levels - 1 - i) for side in coarsest] for i in range(levels)]
    return [torch.randn(batch, 8 + 4 * i, *size) for i, size in enumerate(sizes)]


def test_a_node_adds_by_weights_of_at_least_0_whose_sum_is_1():
    node = FusionNode(4, num_inputs=3, norm=group_norm(2))
    _identity(node)
    node.weights.data = torch.tensor([3.0, -5.0, 1.0])
    a, b, c = torch.randn(3, 2, 4, 5, 6)
    torch.testing.assert_close(node([a, b, c]), (3 * a + c) / 4, rtol=1e-3, atol=1e-4)


def test_a_node_convolves_each_channel_then_mixes_them():
    node = FusionNode(4, num_inputs=2, norm=group_norm(2))
    x = torch.randn(2, 4, 5, 6)
    mixed = torch.einsum(
        "dc,bchw->bdhw", node.pointwise.conv.weight[:, :, 0, 0],
        torch.stack([nn.functional.conv2d(x[:, i : i + 1], node.depthwise.weight[i : i + 1],
                                          padding=1)[:, 0] for i in range(4)], dim=1),
    )  # fmt: skip
    expected = torch.relu(node.pointwise.norm(mixed))
    torch.testing.assert_close(node([x, x]), expected, rtol=1e-3, atol=1e-3)


def test_a_layer_goes_to_the_finest_level_and_back_by_hand():
    layer = FusionLayer(4, num_levels=3, num_outputs=3, norm=group_norm(2))
    for node in [*layer.down, *layer.up]:
        _identity(node)
    assert [len(node.weights) for node in layer.up] == [2, 3, 2]
    fine, middle, coarse = (
        torch.full((1, 4, 4 * s, 4 * s), v) for s, v in ((4, 1.0), (2, 2.0), (1, 6.0))
    )
    found = layer([fine, middle, coarse])
    on_the_way = (2 + 6) / 2
    first = (1 + on_the_way) / 2
    second = (2 + on_the_way + first) / 3
    expected = [first, second, (6 + second) / 2]
    for x, value, size in zip(found, expected, (16, 8, 4)):
        torch.testing.assert_close(x, torch.full((1, 4, size, size), value), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
@pytest.mark.parametrize("mask_level", [0, 1])
def test_every_level_reaches_both_maps_and_every_parameter_learns(levels, mask_level):
    for layers in (1, 2):
        neck = _neck(levels, num_layers=layers, mask_level=mask_level)
        maps = [x.requires_grad_() for x in _maps(levels)]
        outputs = neck(maps)
        assert len(outputs) == 2
        for x in outputs:
            assert x.shape == (2, 16, *maps[mask_level].shape[2:]) and x.min() >= 0
            gradients = torch.autograd.grad(x.square().sum(), maps, retain_graph=True)
            assert all(g.abs().sum() > 0 for g in gradients)
        sum(x.square().sum() for x in outputs).backward()
        # else DistributedDataParallel would wait for ever
        assert [n for n, p in neck.named_parameters() if p.grad is None] == []


def test_levels_for_rounds_are_those_of_the_last_layer():
    neck = _neck(round_levels=[3, 1])
    maps = _maps()
    localising, classifying, levels = neck(maps)
    assert [x.shape for x in levels] == [(2, 16, 3, 5), (2, 16, 12, 20)]
    assert torch.equal(neck.localise(levels[1]), localising)
    assert torch.equal(neck.classify(levels[1]), classifying)
    nodes = [[len(layer.up) for layer in n.layers] for n in (neck, _neck(), _neck(mask_level=0))]
    assert nodes == [[3, 3], [3, 1], [4, 1]]  # from the level of the masks on


def test_the_coarsest_level_carries_its_places():
    neck = _neck()
    maps = [torch.zeros_like(x) for x in _maps()]
    outputs = neck(maps)[0]
    assert outputs.flatten(2).std(2).max() > 0.1  # of an image that is the same everywhere


def test_the_first_weights_neither_drown_nor_burst():
    """GroupNorm's epsilon would drown what small weights twice in a row leave over."""
    neck = BiFPNNeck(in_channels=[256] * 4, conv_std=0.01)
    fused, _ = neck.fuse([torch.randn(1, 256, 8 << i, 8 << i).relu() for i in (3, 2, 1, 0)])
    assert 0.4 < fused.square().mean().sqrt() < 1.5


def test_unfit_maps():
    with pytest.raises(ValueError, match="expected 4 feature maps, got 3"):
        _neck()(_maps(3))
    with pytest.raises(ValueError, match="no finer than the masks'"):
        _neck(round_levels=[0])


@pytest.mark.parametrize("mask_level, upsample", [(0, 1), (1, 2)])
def test_a_model_of_a_config(tiny_cfg, mask_level, upsample):
    knet = tiny_cfg.MODEL.KNET
    knet.NECK, knet.NECK_LAYERS = "build_bifpn_neck", 3
    knet.MASK_LEVEL, knet.MASK_UPSAMPLE = mask_level, upsample
    model = build_model(tiny_cfg).eval()
    assert len(model.heads.neck.layers) == 3
    with torch.no_grad():
        initial, _, _ = model.trace([{"image": torch.zeros(3, 40, 72, dtype=torch.uint8)}])
    stride = 2 << mask_level
    assert initial.features.shape == (1, 16, 48 // stride, 80 // stride)
    tiny_cfg.MODEL.SMALL_RESNET.CHANNELS = [16, 32, 48, 50]
    with pytest.raises(ValueError, match=r"50 channels .* multiple of 4"):
        build_model(tiny_cfg)
