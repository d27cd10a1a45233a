"""Deformable ResNets, and the plain ones against torchvision."""

import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.layers.deform_conv import DeformConv as Detectron2DeformConv
from detectron2.modeling import build_backbone

from knet.checkpoint.backbone_names import (
    DEFORM_RULES,
    TORCHVISION_RULES,
    TORCHVISION_UNUSED,
    rename,
    translate,
)
from knet.config import get_cfg_from_file
from knet.modeling.backbones.deform_resnet import DeformConv


def config(*opts, name="build_deform_resnet_backbone"):
    # a quarter of the width, so that tests are fast
    return get_cfg_from_file(
        "configs/Base-KNet.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", name, "MODEL.RESNETS.NORM", "BN",
         "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True],
         "MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
         "MODEL.RESNETS.WIDTH_PER_GROUP", 16, *opts],
    )  # fmt: skip


def conv(channels=1, groups=1, stride=1):
    theirs = Detectron2DeformConv(
        channels, channels, 3, stride=stride, padding=1, deformable_groups=groups
    )
    return DeformConv(theirs)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_zero_offsets_equal_a_plain_resnet(modulated, groups):
    opts = ["MODEL.RESNETS.DEFORM_MODULATED", modulated, "MODEL.RESNETS.DEFORM_NUM_GROUPS", groups]
    deformable = build_backbone(config(*opts)).eval()
    plain = build_backbone(
        config("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False] * 4, name="build_resnet_backbone")
    ).eval()
    state = {k: v for k, v in deformable.state_dict().items() if "offset" not in k}
    if modulated:  # masks start at sigmoid(0)
        state = {
            k: v / 2 if k.endswith("conv2.weight") and not k.startswith("res2") else v
            for k, v in state.items()
        }
    plain.load_state_dict(state)
    images = torch.randn(2, 3, 64, 96)
    # untrained norms let features grow to 190, where single precision resolves 1e-5 only relatively
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        deformable, plain, images = deformable.to(dtype), plain.to(dtype), images.to(dtype)
        with torch.no_grad():
            expected = plain(images)
            for name, x in deformable(images).items():
                difference = (x - expected[name]).abs().max()
                assert difference <= tolerance * expected[name].abs().max(), (name, dtype)
    assert deformable.output_shape() == plain.output_shape()


@pytest.mark.parametrize("rows, columns", [(0, 0), (1, 0), (0, -2), (-1, 3)])
def test_offsets_are_pairs_of_rows_and_columns(rows, columns):
    layer, x = conv(), torch.randn(1, 1, 9, 11)
    offset = torch.tensor([float(rows), float(columns)]).repeat(9).view(1, 18, 1, 1)
    out = layer(x, offset.expand(-1, -1, 9, 11))
    # reading further down is the same as an image shifted up; zeros beyond the border
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    shifted = padded[:, :, 3 + rows : 14 + rows, 3 + columns : 16 + columns]
    torch.testing.assert_close(out, torch.nn.functional.conv2d(shifted, layer.weight))


def test_each_kernel_position_has_its_own_pair_and_mask():
    layer, x = conv(), torch.randn(1, 1, 8, 8)
    for position in range(9):
        offset, mask = torch.zeros(1, 18, 8, 8), torch.ones(1, 9, 8, 8)
        offset[:, 2 * position + 1] = 100  # far out of the image, to the right: reads 0
        mask[:, position] = 0
        kernel = layer.weight.detach().clone().flatten()
        kernel[position] = 0
        expected = torch.nn.functional.conv2d(x, kernel.view(1, 1, 3, 3), padding=1)
        torch.testing.assert_close(layer(x, offset), expected)
        torch.testing.assert_close(layer(x, torch.zeros(1, 18, 8, 8), mask), expected)


def test_groups_of_channels_shift_apart():
    layer, x = conv(channels=2, groups=2), torch.randn(1, 2, 8, 8)
    offset = torch.zeros(1, 36, 8, 8)
    offset[:, 18 + 1 :: 2] = 1  # columns of the second group
    shifted = torch.stack([x[:, 0], torch.nn.functional.pad(x[:, 1, :, 1:], (0, 1))], 1)
    expected = torch.nn.functional.conv2d(shifted, layer.weight, padding=1)
    torch.testing.assert_close(layer(x, offset)[..., 1:-1], expected[..., 1:-1])


@pytest.mark.parametrize("modulated", [False, True])
def test_channels_of_the_offset_convolution(modulated):
    """Bias of the offsets' convolution: rows and columns first, then logits of the masks."""
    cfg = config("MODEL.RESNETS.DEFORM_MODULATED", modulated)
    block = build_backbone(cfg).eval().res3[1]
    x = torch.randn(1, block.in_channels, 10, 12)
    with torch.no_grad():
        block.conv2_offset.bias[1:18:2] = 1.0  # one column to the right
        if modulated:
            block.conv2_offset.bias[18:] = 50.0  # a mask of 1
        out = block(x)
        # one column to the left, with zeros, before a plain convolution
        inner = torch.relu(block.conv1(x))
        inner = torch.nn.functional.pad(inner, (1, 1, 1, 1))[..., 1:]
        inner = torch.nn.functional.pad(inner, (0, 1))
        inner = torch.nn.functional.conv2d(inner, block.conv2.weight)
        expected = torch.relu(block.conv3(torch.relu(block.conv2.norm(inner))) + x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_names_strides_freezing_and_gradients():
    model = build_backbone(config()).train()
    names = dict(model.named_parameters())
    assert names["res3.0.conv2.weight"].shape == (32, 32, 3, 3)
    assert names["res3.0.conv2_offset.weight"].shape == (18, 32, 3, 3)
    assert "res3.0.conv2.norm.weight" in names
    assert not any("res2" in k and "offset" in k for k in names)
    assert model.output_shape() == {
        f"res{i + 2}": ShapeSpec(channels=64 * 2**i, stride=4 * 2**i) for i in range(4)
    }
    outputs = model(torch.randn(1, 3, 64, 96))
    assert {k: tuple(v.shape[2:]) for k, v in outputs.items()} == {
        f"res{i}": (64 // 2**i, 96 // 2**i) for i in (2, 3, 4, 5)
    }
    sum(x.square().mean() for x in outputs.values()).backward()
    for name, parameter in names.items():  # Base-KNet.yaml freezes stem and res2
        assert parameter.requires_grad != name.startswith(("stem", "res2")), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(p.grad.abs().sum() > 0 for n, p in names.items() if "conv2_offset.bias" in n)
    frozen = build_backbone(config("MODEL.BACKBONE.FREEZE_AT", 3))
    assert not any(p.requires_grad for p in frozen.res3.parameters())
    assert all(p.requires_grad for p in frozen.res4.parameters())


def test_mixed_precision_and_fpn():
    model = build_backbone(config(name="build_deform_resnet_fpn_backbone")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(images)
    assert list(exact) == ["p2", "p3", "p4", "p5"] and model.size_divisibility == 32
    for name, x in exact.items():
        assert (mixed[name].float() - x).abs().mean() < 0.1 * x.abs().mean()


@pytest.mark.parametrize("opts, message", [
    (["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False] * 4], r"DEFORM_ON_PER_STAGE is \[False"),
    (["MODEL.RESNETS.DEPTH", 18], r"MODEL\.RESNETS\.DEPTH is 18"),
])  # fmt: skip
def test_errors_name_the_key(opts, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(config(*opts))


def test_openmmlab_names_of_r101_dcn():
    cfg = config("MODEL.RESNETS.DEPTH", 101)
    ours = set(build_backbone(cfg).state_dict())
    # as mmdet names them: torchvision's, and the offsets inside the deformable convolution
    with torch.device("meta"):
        theirs = [k for k in torchvision.models.resnet101().state_dict() if not k.startswith("fc.")]
    blocks = {2: 4, 3: 23, 4: 3}
    theirs += [
        f"layer{stage}.{i}.conv2.conv_offset.{kind}"
        for stage, count in blocks.items()
        for i in range(count)
        for kind in ("weight", "bias")
    ]
    rules = {**TORCHVISION_RULES, **DEFORM_RULES}
    translated = {translate(k, rules) for k in theirs}
    tracked = {k for k in translated if k.endswith("num_batches_tracked")}
    assert translated - tracked == {k for k in ours if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize("depth", [50, 101])
def test_plain_resnet_is_that_of_torchvision(depth):
    theirs = getattr(torchvision.models, f"resnet{depth}")().eval()
    for m in theirs.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.8, 1.2)
            m.weight.data.uniform_(0.3, 0.6)
            m.bias.data.normal_(0, 0.1)
    cfg = get_cfg_from_file(
        "configs/Base-KNet.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_resnet_backbone",
         "MODEL.RESNETS.DEPTH", depth, "MODEL.BACKBONE.FREEZE_AT", 0],
    )  # fmt: skip
    ours = build_backbone(cfg).eval()
    ours.load_state_dict(rename(theirs.state_dict(), TORCHVISION_RULES, TORCHVISION_UNUSED))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        outputs = ours(images)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for i in range(1, 5):
            x = getattr(theirs, f"layer{i}")(x)
            torch.testing.assert_close(outputs[f"res{i + 1}"], x, rtol=1e-5, atol=1e-5)
