"""Counts of operations are right by hand and by torch's counter, and say if they are complete."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import DeformConv2d

from knet.analysis import activation_analysis, flop_analysis
from knet.config import get_cfg_from_file

pytestmark = pytest.mark.slow

TINY = [
    "MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()",
    "MODEL.KNET.NUM_THING_CLASSES", "4", "MODEL.KNET.NUM_STUFF_CLASSES", "3",
    "MODEL.SMALL_RESNET.CHANNELS", "[16, 32, 48, 64]", "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.KNET.HIDDEN_DIM", "16", "MODEL.KNET.FFN_DIM", "32", "MODEL.KNET.NORM_GROUPS", "4",
    "MODEL.KNET.NUM_HEADS", "4",
]  # fmt: skip


class Known(nn.Module):
    """Every kind of product once, called as a K-Net is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.deform = DeformConv2d(16, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.unused = nn.Linear(16, 5)

    def forward(self, batched_inputs):
        x = batched_inputs[0]["image"].float()[None]  # 8x10
        x = self.norm(self.conv(x))
        offsets = torch.zeros(1, 18, 8, 10)
        deformed = self.deform(x, offsets)
        tokens = x.flatten(2).transpose(1, 2)[:, :6]  # (1, 6, 16)
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        self.unused(attended)
        rows = torch.ones(5, 8) @ x[0]  # (16, 5, 10), broadcast
        vector = rows @ torch.ones(10)  # (16, 5)
        added = torch.baddbmm(torch.ones(1, 6, 6), attended, attended.transpose(1, 2))
        summed = torch.einsum("bnc,bmc->bnm", attended, tokens)
        half = nn.functional.interpolate(deformed, size=(4, 5), mode="bilinear")
        return [{"all": [vector, added.softmax(-1), summed, half.sigmoid()]}]


RECORD = {"image": torch.zeros(3, 8, 10, dtype=torch.uint8), "height": 8, "width": 10}
BY_HAND = {
    "conv": 80 * 16 * 3 * 9,
    "group_norm": 5 * 80 * 16,
    "deform_conv2d": 80 * 8 * 16 * 9,
    "bilinear_sampling": 4 * 80 * 16 * 9,
    "linear": 6 * 16 * 48 + 6 * 16 * 16 + 6 * 16 * 5,  # attention in and out, unused
    "scaled_dot_product_attention": 2 * 36 * (8 + 8),
    "softmax": 5 * (2 * 36 + 36),
    "matmul": 16 * 5 * 10 * 8 + 16 * 5 * 10,
    "baddbmm": 36 * 16,
    "einsum": 36 * 16,
    "upsample_bilinear2d": 4 * 8 * 20,
    "sigmoid": 8 * 20,
}


def test_counts_are_those_by_hand():
    count = flop_analysis(Known(), RECORD)
    assert count.by_operator == BY_HAND
    assert count.uncounted == {}
    products = ("conv", "deform_conv2d", "linear", "scaled_dot_product_attention", "matmul",
                "baddbmm", "einsum")  # fmt: skip
    assert count.products == sum(BY_HAND[name] for name in products)
    held = activation_analysis(Known(), RECORD)
    assert held.by_operator == {
        "_convolution": 80 * 16, "deform_conv2d": 80 * 8, "linear": 6 * (48 + 16 + 5),
        "scaled_dot_product_attention": 6 * 16, "matmul": 16 * 50 + 16 * 5, "baddbmm": 36,
        "einsum": 36,
    }  # fmt: skip
    assert held.uncounted == {}


def test_unknown_operators_are_named():
    class Unknown(nn.Module):
        def forward(self, batched_inputs):
            return [{"x": batched_inputs[0]["image"].float().cosh().cosh()}]

    assert flop_analysis(Unknown(), RECORD).uncounted == {"aten::cosh": 2}
    assert activation_analysis(Unknown(), RECORD).uncounted == {"aten::cosh": 2}


def test_the_model_is_left_as_it_was():
    model = Known().train()
    model.conv.weight.requires_grad_(False)
    flop_analysis(model, RECORD)
    assert model.training and not model.conv.weight.requires_grad
    assert model.conv.bias.requires_grad and not model.unused._forward_hooks
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("name", "more"),
    [("panoptic", []), ("instance", ["MODEL.KNET.KERNEL_PEAKS", True]), ("semantic", [])],
)
def test_models_are_counted_completely(name, more):
    from detectron2.modeling import build_model

    classes = {"panoptic": (4, 3), "instance": (4, 0), "semantic": (0, 7)}[name]
    opts = [
        *more,
        "MODEL.KNET.NUM_THING_CLASSES",
        classes[0],
        "MODEL.KNET.NUM_STUFF_CLASSES",
        classes[1],
    ]
    cfg = get_cfg_from_file(f"configs/shapes/{name}.yaml", [*TINY, *opts])
    model = build_model(cfg).eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    record = {"image": image, "height": 64, "width": 96}
    model([record])  # the matrices of a size are made once
    count = flop_analysis(model, record)
    assert count.uncounted == activation_analysis(model, record).uncounted == {}
    with FlopCounterMode(display=False) as counter:  # with gradients: no fused attention
        model([record])
    # torch counts multiplications and additions apart, and no products with a vector
    assert 2 * count.products == pytest.approx(counter.get_total_flops(), rel=1e-3)
    assert count.products * 2 >= counter.get_total_flops()
