"""Plain vision transformers of timm and the pyramid on top."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.modeling import build_backbone, build_model

from knet.config import get_cfg_from_file
from knet.modeling.backbones import PlainViT, SimplePyramid
from knet.modeling.backbones.timm_vit import ChannelNorm
from knet.training.optimizer import build_optimizer

NAME = "vit_tiny_patch16_224"
TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}


def config(*opts, name=NAME, freeze_at=0, **kwargs):
    cfg = get_cfg_from_file(
        "configs/shapes/panoptic.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_timm_vit_backbone",
         "MODEL.BACKBONE.FREEZE_AT", freeze_at, "MODEL.TIMM.NAME", name,
         "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.KNET.HIDDEN_DIM", 32, "MODEL.KNET.FFN_DIM", 32,
         "MODEL.KNET.NUM_KERNELS", 5, "MODEL.KNET.IN_FEATURES", ["p2", "p3", "p4", "p5"],
         "DATASETS.TRAIN", (), "DATASETS.TEST", (), "MODEL.KNET.NUM_THING_CLASSES", 2,
         "MODEL.KNET.NUM_STUFF_CLASSES", 1, *opts],
    )  # fmt: skip
    for key, value in {**TINY, **kwargs}.items():
        cfg.MODEL.TIMM.KWARGS[key] = value
    return cfg


@pytest.mark.parametrize("name, kwargs", [
    (NAME, {}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("deit3_small_patch16_224", {}),
    ("eva02_tiny_patch14_224", {"patch_size": 16}),
    ("vit_small_patch14_reg4_dinov2", {"patch_size": 16, "img_size": 64}),
    ("vit_small_patch16_dinov3", {}),
    ("vit_base_patch16_siglip_224", {}),
])  # fmt: skip
def test_maps_and_their_shapes(name, kwargs):
    # rotary positions divide the width of a head by four
    model = SimplePyramid(PlainViT(name, kwargs={**TINY, "num_heads": 4, **kwargs}), 24)
    assert model.size_divisibility == 32
    shapes = model.output_shape()
    assert {k: v.stride for k, v in shapes.items()} == {f"p{i}": 2**i for i in (2, 3, 4, 5)}
    outputs = model(torch.randn(2, 3, 64, 96))
    for key, x in outputs.items():
        assert shapes[key].channels == 24
        assert x.shape == (2, 24, 64 // shapes[key].stride, 96 // shapes[key].stride)
    sum(x.square().mean() for x in outputs.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_the_map_is_that_of_timm():
    ours = PlainViT(NAME, kwargs=TINY).eval()
    theirs = timm.create_model(NAME, img_size=(64, 96), **TINY).eval()
    state = {k: v for k, v in ours.model.state_dict().items() if k != "pos_embed"}
    theirs.load_state_dict(state, strict=False)
    with torch.no_grad():  # the positions of 224 pixels for 64 x 96
        grid = ours.model.pos_embed[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (4, 6), mode="bicubic", antialias=True).flatten(2).mT
        theirs.pos_embed.copy_(torch.cat([ours.model.pos_embed[:, :1], grid], 1))
        images = torch.randn(1, 3, 64, 96)
        expected = theirs.forward_features(images)[:, 1:].mT.unflatten(2, (4, 6))
        torch.testing.assert_close(ours(images)["last"], expected)


def test_the_pyramid_is_what_the_paper_describes():
    vit = PlainViT(NAME, kwargs=TINY)
    pyramid = SimplePyramid(vit, 16).double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    vit.double()
    outputs, last = pyramid(images), vit(images)["last"]

    def norm(x, layer):
        x = (x - x.mean(1, True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return x * layer.weight[:, None, None] + layer.bias[:, None, None]

    def end(x, layers):
        one, first, three, second = layers
        x = norm(torch.einsum("oc,bchw->bohw", one.weight[..., 0, 0], x), first)
        return norm(F.conv2d(x, three.weight, padding=1), second)

    assert all(
        len(layers[-4:]) == 4
        for layers in (
            pyramid.pyramid.p2,
            pyramid.pyramid.p3,
            pyramid.pyramid.p4,
            pyramid.pyramid.p5,
        )
    )
    torch.testing.assert_close(outputs["p4"], end(last, pyramid.pyramid.p4))
    torch.testing.assert_close(outputs["p5"], end(F.max_pool2d(last, 2), pyramid.pyramid.p5[1:]))

    def double(x, layer):  # four pixels of each
        y = torch.einsum("bchw,cokl->bohkwl", x, layer.weight).flatten(4).flatten(2, 3)
        return y + layer.bias[:, None, None]

    torch.testing.assert_close(
        outputs["p3"], end(double(last, pyramid.pyramid.p3[0]), pyramid.pyramid.p3[1:])
    )
    up, between, _, again = pyramid.pyramid.p2[:4]
    x = double(F.gelu(norm(double(last, up), between)), again)
    torch.testing.assert_close(outputs["p2"], end(x, pyramid.pyramid.p2[4:]))


def test_a_frozen_model_learns_and_drops_nothing():
    kwargs = {"proj_drop_rate": 0.5, "drop_path_rate": 0.0}
    cfg = config("MODEL.TIMM.FROZEN", True, freeze_at=2, **kwargs)
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5
    model = build_model(cfg).train()
    vit = model.backbone.bottom_up
    assert not any(module.training for module in vit.model.modules())
    assert model.backbone.pyramid.p2.training
    images = torch.randn(1, 3, 64, 64)
    outputs = model.backbone(images)
    assert not vit(images)["last"].requires_grad
    assert torch.equal(vit(images)["last"], vit(images)["last"])
    sum(x.square().mean() for x in outputs.values()).backward()
    for name, parameter in model.backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith("bottom_up."), name
    groups = build_optimizer(cfg, model).param_groups
    assert {group["lr"] for group in groups} == {cfg.SOLVER.BASE_LR}


def test_the_pyramid_learns_at_the_full_rate_and_patterns_exempt_embeddings():
    cfg = config("SOLVER.NO_DECAY", ["*pos_embed", "*cls_token"], "SOLVER.WEIGHT_DECAY_NORM", 0.0)
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5
    model = build_model(cfg)
    found = {}
    for group in build_optimizer(cfg, model).param_groups:
        for name in group["param_names"]:
            found[name] = group["lr"] / cfg.SOLVER.BASE_LR, group["weight_decay"]
    decay = cfg.SOLVER.WEIGHT_DECAY
    assert decay > 0
    assert found["backbone.bottom_up.model.pos_embed"] == (0.5, 0)
    assert found["backbone.bottom_up.model.blocks.0.attn.qkv.weight"] == (0.5, decay)
    assert found["backbone.pyramid.p2.0.weight"] == (1, decay)
    assert isinstance(model.backbone.pyramid.p2[1], ChannelNorm)
    assert found["backbone.pyramid.p2.1.weight"] == (1, 0)


def test_checkpointed_gradients_are_equal():
    images, gradients, state = torch.randn(2, 3, 64, 64), [], None
    for on in (False, True):
        model = build_backbone(config("MODEL.TIMM.GRADIENT_CHECKPOINTING", on)).train()
        assert model.bottom_up.model.grad_checkpointing is on
        state = state or model.state_dict()
        model.load_state_dict(state)
        sum(x.square().mean() for x in model(images).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name, opts, message", [
    ("vit_small_patch14_dinov2", {}, 
     r"patches of 14 pixels.*MODEL\.TIMM\.KWARGS\.patch_size to 16"),
    ("resnet18", {}, r"MODEL\.TIMM\.NAME: resnet18 is no plain vision transformer"),
    ("swin_tiny_patch4_window7_224", {}, r"swin_tiny_patch4_window7_224 is no plain vision"),
    (NAME, {"typo": 1}, r"does not take one of MODEL\.TIMM\.KWARGS .*'typo'"),
    (NAME, {"pretrained": True}, r"MODEL\.TIMM\.KWARGS\.pretrained is no argument of an arch"),
    ("vit_tiny_patch16_242", {}, r"timm has no model 'vit_tiny_patch16_242'; near to it"),
])  # fmt: skip
def test_errors_name_the_key(name, opts, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(config(name=name, **opts))


def test_stages_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.FREEZE_AT is 2.*MODEL\.TIMM\.FROZEN"):
        build_backbone(config(freeze_at=2))
