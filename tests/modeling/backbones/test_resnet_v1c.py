"""ResNet-V1c: strides, dilations, sizes."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from knet.config import get_cfg_from_file
from knet.modeling.backbones.resnet_v1c import build_resnet_v1c_backbone


def build(output_stride, depth=50, norm="BN"):
    cfg = get_cfg_from_file(
        "configs/Base-KNet.yaml",
        ["MODEL.RESNET_V1C.OUTPUT_STRIDE", output_stride, "MODEL.RESNETS.DEPTH", depth,
         "MODEL.RESNETS.NORM", norm, "MODEL.RESNETS.STEM_OUT_CHANNELS", 32,
         "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.BACKBONE.FREEZE_AT", 0],
    )  # fmt: skip
    return build_resnet_v1c_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize(
    "output_stride, strides, dilations",
    [  # dilations: of the first block of a stage and of the others
        (32, [4, 8, 16, 32], [(1, 1), (1, 1), (1, 1), (1, 1)]),
        (16, [4, 8, 16, 16], [(1, 1), (1, 1), (1, 1), (1, 2)]),
        (8, [4, 8, 8, 8], [(1, 1), (1, 1), (1, 2), (2, 4)]),
    ],
)
def test_strides_and_dilations(output_stride, strides, dilations):
    backbone = build(output_stride).eval()
    stages = [getattr(backbone, f"res{i}") for i in (2, 3, 4, 5)]
    for stage, (first, others) in zip(stages, dilations):
        assert [b.conv2.dilation[0] for b in stage] == [first] + [others] * (len(stage) - 1)
        assert all(b.conv2.padding == b.conv2.dilation for b in stage)
        assert all(b.conv1.stride == (1, 1) for b in stage)  # the 3x3 convolution strides
    shapes = backbone.output_shape()
    assert [shapes[f"res{i}"].stride for i in (2, 3, 4, 5)] == strides
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 65, 97))
    for i, stride in zip((2, 3, 4, 5), strides):
        size = (-(-65 // stride), -(-97 // stride))
        assert features[f"res{i}"].shape == (1, 64 << (i - 2), *size)


def test_stem_is_deep():
    stem = build(32).stem
    convs = [stem.conv1, stem.conv2, stem.conv3]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convs] == [
        (3, 16, 2), (16, 16, 1), (16, 32, 1),
    ]  # fmt: skip
    assert {c.kernel_size for c in convs} == {(3, 3)}


@pytest.mark.parametrize("depth, blocks", [(50, [3, 4, 6, 3]), (101, [3, 4, 23, 3])])
def test_blocks(depth, blocks):
    backbone = build(8, depth)
    assert [len(getattr(backbone, f"res{i}")) for i in (2, 3, 4, 5)] == blocks


def test_unknown_depth():
    with pytest.raises(ValueError, match=r"MODEL\.RESNETS\.DEPTH is 18.*\[50, 101, 152\]"):
        build(8, depth=18)
