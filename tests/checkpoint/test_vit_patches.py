"""Weights of vision transformers for other patches and positions."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.vit_patches import fit_patches

timm = pytest.importorskip("timm")
TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}


@pytest.mark.parametrize("name, kwargs", [
    ("vit_small_patch14_dinov2", {"patch_size": 16, "img_size": 64}),
    ("vit_small_patch14_reg4_dinov2", {"patch_size": 16, "img_size": 64}),
    ("vit_tiny_patch16_224", {}),
    ("vit_base_patch16_siglip_224", {}),
])  # fmt: skip
def test_files_of_timm(tiny_cfg, tmp_path, caplog, name, kwargs):
    caplog.set_level("INFO", "knet")
    torch.manual_seed(3)
    their_size = {"img_size": 98} if "patch14" in name else {}
    whole = timm.create_model(name, num_classes=7, **TINY, **their_size)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    tiny_cfg.MODEL.BACKBONE.NAME = "build_timm_vit_backbone"
    tiny_cfg.MODEL.BACKBONE.FREEZE_AT = 0
    tiny_cfg.MODEL.TIMM.NAME = name
    tiny_cfg.MODEL.KNET.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    for key, value in {**TINY, **kwargs}.items():
        tiny_cfg.MODEL.TIMM.KWARGS[key] = value
    model = build_model(tiny_cfg)
    KNetCheckpointer(model).load(str(tmp_path / "vit.pth"))
    vit = model.backbone.bottom_up.model
    theirs = whole.state_dict()
    for key, value in vit.state_dict().items():
        if not kwargs or key not in ("patch_embed.proj.weight", "pos_embed"):
            assert torch.equal(value, theirs[key]), key
    assert "vit.pth: weights for a timm backbone" in caplog.text
    assert ("resampled: " in caplog.text) == bool(kwargs)
    assert ("left out: 2 classifier, 13 layers behind the" in caplog.text) == ("siglip" in name)
    if kwargs:
        assert "patches of 14 pixels to 16" in caplog.text
        assert "7x7 positions to 4x4" in caplog.text
        # a patch that is the same everywhere has the same embedding at any size
        ours, before = vit.patch_embed.proj.weight, theirs["patch_embed.proj.weight"]
        torch.testing.assert_close(ours.sum((2, 3)), before.sum((2, 3)), rtol=1e-3, atol=1e-3)
    assert not [r for r in caplog.records if r.levelname == "WARNING"], caplog.text


def test_positions_are_interpolated_behind_the_prefix():
    old = torch.randn(1, 2 + 9, 4)
    old[:, 2:] = torch.tensor([1.0, 2.0, 3.0, 4.0])  # the same everywhere
    fitted, done = fit_patches({"a.pos_embed": old}, {"a.pos_embed": torch.zeros(1, 2 + 16, 4)})
    value = fitted["a.pos_embed"]
    assert torch.equal(value[:, :2], old[:, :2]) and done == "3x3 positions to 4x4"
    torch.testing.assert_close(value[0, 2:], old[:, 2].expand(16, 4))


def test_what_does_not_fit_stays_for_the_message_about_shapes():
    ours = {
        "a.pos_embed": torch.zeros(1, 17, 4),
        "a.patch_embed.proj.weight": torch.zeros(4, 3, 16, 16),
    }
    for value in (torch.zeros(1, 9, 4), torch.zeros(1, 10, 5)):
        assert fit_patches({"a.pos_embed": value}, ours) == ({"a.pos_embed": value}, "")
    other = {"a.patch_embed.proj.weight": torch.zeros(5, 3, 14, 14)}
    assert fit_patches(other, ours) == (other, "")
