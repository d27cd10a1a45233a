"""Modules that are traced for any size in place of others compute what those do."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.export import Dim

from knet.export.lowering import constant_padding, exportable_copy
from knet.export.onnx_file import save_onnx
from knet.export.program import build_graph, trace
from knet.modeling.backbones import PlainViT, SimplePyramid

from .models import scene, small_cfg, small_predictor

layers = pytest.importorskip("timm.layers")

_SAME = {
    "conv": lambda: layers.Conv2dSame(3, 4, 3, stride=2),
    "long": lambda: layers.Conv2dSame(3, 4, (5, 3), stride=(2, 1), dilation=2),
    "even": lambda: layers.Conv2dSame(3, 4, 2),
    "narrow": lambda: layers.Conv2dSame(3, 4, 1, stride=2),
    "standardised": lambda: layers.StdConv2dSame(3, 4, 7, stride=2),
    "scaled": lambda: layers.ScaledStdConv2dSame(3, 4, 3, stride=2),
    "max": lambda: layers.create_pool2d("max", 3, 2, padding="same"),
    "mean": lambda: layers.AvgPool2dSame(3, 2),
}


@pytest.mark.parametrize("kind", list(_SAME))
def test_same_padding_is_the_same_at_every_size(kind):
    module = nn.Sequential(_SAME[kind](), _SAME["conv"]() if kind in ("max", "mean") else nn.ReLU())
    module.eval()
    sizes = ({2: 4 * Dim("rows", min=2), 3: 4 * Dim("columns", min=2)},)
    with constant_padding():
        program = torch.export.export(module, (torch.rand(1, 3, 32, 48),), dynamic_shapes=sizes)
        fixed = module(torch.rand(1, 3, 17, 19)).shape
    for height, width in ((32, 48), (64, 20)):
        image = torch.rand(1, 3, height, width)
        assert torch.equal(program.module()(image), module(image))
    assert module(torch.rand(1, 3, 17, 19)).shape == fixed


def test_a_backbone_with_same_padding_is_exported(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    cfg = small_cfg(
        "instance",
        *("MODEL.BACKBONE.NAME", "build_timm_backbone", "INPUT.FORMAT", "RGB"),
        *("MODEL.TIMM.NAME", "tf_mobilenetv3_small_minimal_100"),
    )
    predictor = small_predictor(cfg, "instance")
    graph = build_graph(predictor.model, channel_order="RGB", onnx=True, raw=True)
    told: list[str] = []
    path = tmp_path / "model.onnx"
    save_onnx(trace(graph, example_size=(96, 128)), path, {}, progress=told.append)
    assert told == ["translating to ONNX", f"writing {path}"]
    session = onnxruntime.InferenceSession(path)
    for height, width in ((90, 130), (160, 75)):
        image = torch.from_numpy(scene(height, width, 1).transpose(2, 0, 1).copy())
        masks, scores = session.run(["mask_logits", "class_logits"], {"image": image[None].numpy()})
        with torch.no_grad():
            expected = graph(image[None])
        torch.testing.assert_close(
            torch.from_numpy(masks), expected["mask_logits"], rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(
            torch.from_numpy(scores), expected["class_logits"], rtol=1e-3, atol=1e-3
        )


def test_a_plain_vision_transformer_at_every_size(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    kwargs = {"depth": 1, "embed_dim": 16, "num_heads": 2, "img_size": 64}
    model = SimplePyramid(PlainViT("vit_tiny_patch16_224", kwargs=kwargs), 8).eval()
    module = exportable_copy(model, "backbone", onnx=True)
    sizes = ({2: 32 * Dim("rows", min=2), 3: 32 * Dim("columns", min=2)},)
    program = torch.export.export(
        module, (torch.rand(1, 3, 64, 96),), dynamic_shapes=sizes, strict=False
    )
    save_onnx(program, tmp_path / "vit.onnx", {})
    session = ort.InferenceSession(tmp_path / "vit.onnx")
    for height, width in ((64, 64), (64, 96), (128, 96)):  # the first as in training
        image = torch.rand(1, 3, height, width)
        with torch.no_grad():
            expected = model(image)
        found = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        assert len(found) == 4
        for x, y in zip(found, expected.values()):
            torch.testing.assert_close(torch.from_numpy(x), y, rtol=0, atol=1e-4)


def test_rotary_positions_of_dinov3_are_refused_at_every_size():
    opts = ["MODEL.BACKBONE.NAME", "build_timm_vit_backbone", "MODEL.FPN.OUT_CHANNELS", "16",
            "MODEL.TIMM.NAME", "vit_small_patch16_dinov3",
            "MODEL.KNET.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']"]  # fmt: skip
    cfg = small_cfg("panoptic", *opts)
    for key, value in {"depth": 1, "embed_dim": 16, "num_heads": 2}.items():
        cfg.MODEL.TIMM.KWARGS[key] = value
    graph = build_graph(small_predictor(cfg, "panoptic").model, channel_order="RGB", onnx=True)
    with pytest.raises(ValueError, match="rotary positions of DINOv3 can be traced for one size"):
        trace(graph, example_size=(61, 83), dynamic=["width"])


def test_kernels_of_training_are_not_exported(tiny_cfg):
    keys = ["MODEL.KNET.MASK_PILOTS", 2, "MODEL.KNET.ONE_TO_MANY", 2]
    plain = build_model(tiny_cfg)
    tiny_cfg.merge_from_list(keys)
    helped = build_model(tiny_cfg)
    names = [
        [name for name, _ in exportable_copy(model.heads, "heads", onnx=True).named_parameters()]
        for model in (plain, helped)
    ]
    assert names[0] == names[1]
    assert any("training_kernels" in name for name, _ in helped.heads.named_parameters())
    features = list(helped.backbone(torch.rand(1, 3, 96, 96)).values())
    copied = exportable_copy(helped.heads, "heads", onnx=True)
    with torch.no_grad():
        expected, found = (heads(features)[1][-1] for heads in (helped.heads.eval(), copied))
    assert all(map(torch.equal, expected, found))
