"""Test-time augmentation of whole models."""

import pytest
import torch
from detectron2.modeling import build_model

from knet.modeling.predictions import Frame, PixelPredictions
from knet.modeling.task import SemanticTask
from knet.tta import KNetWithTTA, View, mean_probabilities


def picture(height=65, width=65):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def augmented(cfg, model, sizes, flip):
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = sizes, 4000, flip
    return KNetWithTTA(cfg, model).eval()


@torch.no_grad()
def test_one_view_is_the_plain_semantic_result(semantic_cfg):
    model = build_model(semantic_cfg).eval()
    x = {"image": picture(65, 81), "height": 65, "width": 81}
    (plain,), (merged,) = model([x]), augmented(semantic_cfg, model, (65,), False)([x])
    assert torch.equal(plain["sem_seg"], merged["sem_seg"])


@torch.no_grad()
def test_one_view_is_the_plain_panoptic_result(tiny_cfg):
    tiny_cfg.MODEL.KNET.TEST.THING_THRESH = 0.0
    tiny_cfg.MODEL.KNET.TEST.OVERLAP_THRESH = 0.0
    model = build_model(tiny_cfg).eval()
    x = {"image": picture(50, 70), "height": 50, "width": 70}
    (plain,), (merged,) = model([x]), augmented(tiny_cfg, model, (50,), False)([x])
    assert torch.equal(plain["sem_seg"], merged["sem_seg"])
    assert torch.equal(plain["panoptic_seg"][0], merged["panoptic_seg"][0])
    assert plain["panoptic_seg"][1] == merged["panoptic_seg"][1]
    for field in ("scores", "pred_classes", "pred_masks"):
        assert torch.equal(plain["instances"].get(field), merged["instances"].get(field))


@pytest.mark.parametrize("head", ["fcn", "uper"])
@torch.no_grad()
def test_mirror_image_of_a_symmetric_model_changes_nothing(semantic_cfg, head):
    """With symmetric kernels, and strides that sample 65 columns alike from both ends, the result
    of the mirror image is the mirrored result, whatever the image."""
    semantic_cfg.MODEL.KNET.KERNEL_HEAD = head
    semantic_cfg.MODEL.KNET.SIZE_DIVISIBILITY = 1
    model = build_model(semantic_cfg).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.copy_((layer.weight + layer.weight.flip(-1)) / 2)
    x = {"image": picture()}
    (plain,) = model([x])
    (merged,) = augmented(semantic_cfg, model, (65,), True)([x])
    torch.testing.assert_close(merged["sem_seg"], plain["sem_seg"], rtol=0, atol=1e-5)
    lopsided = (plain["sem_seg"] - plain["sem_seg"].flip(-1)).abs().max()
    assert lopsided > 1e-4  # views that are not mirrored back would be seen


@torch.no_grad()
def test_semantic_views_are_averaged():
    task = SemanticTask()
    a, b = torch.randn(4, 12, 16), torch.randn(4, 24, 32)
    whole = Frame((48, 64), (48, 64))
    first = task.results(PixelPredictions(a, whole), (48, 64))["sem_seg"]
    second = task.results(PixelPredictions(b, Frame((96, 128), (96, 128))), (48, 64))["sem_seg"]
    views = [
        View(PixelPredictions(a, whole)),
        View(PixelPredictions(a.flip(-1), whole), flipped=True),
        View(PixelPredictions(b.flip(-1), Frame((96, 128), (96, 128))), flipped=True),
    ]
    merged = mean_probabilities(views[:2], (48, 64))
    torch.testing.assert_close(merged, first, rtol=0, atol=1e-6)
    merged = mean_probabilities(views, (48, 64))
    torch.testing.assert_close(merged, (2 * first + second) / 3, rtol=0, atol=1e-6)


@torch.no_grad()
def test_all_results_of_several_views(tiny_cfg):
    model = build_model(tiny_cfg).eval()
    views = []
    predict = model.predict
    model.predict = lambda batch: (
        views.extend(x["image"].shape[-2:] for x in batch) or predict(batch)
    )
    tta = augmented(tiny_cfg, model, (48, 64), True)
    # the picture comes smaller than the original
    out = tta([{"image": picture(50, 70), "height": 75, "width": 105}])[0]
    assert [tuple(v) for v in views] == [(48, 67), (48, 67), (64, 90), (64, 90)]
    assert out["sem_seg"].shape == (8, 75, 105)
    id_map, segments = out["panoptic_seg"]
    assert id_map.shape == (75, 105)
    assert {s["id"] for s in segments} == set(id_map.unique().tolist()) - {0}
    assert out["instances"].image_size == (75, 105)
    assert out["instances"].pred_masks.shape[1:] == (75, 105)
    assert 0 < len(out["instances"]) <= 100


@torch.no_grad()
def test_windows_and_views_together(semantic_cfg):
    semantic_cfg.MODEL.KNET.TEST.WINDOW.SIZE = (40, 40)
    model = build_model(semantic_cfg).eval()
    (out,) = augmented(semantic_cfg, model, (48, 64), True)([{"image": picture(50, 70)}])
    torch.testing.assert_close(out["sem_seg"].sum(0), torch.ones(50, 70))


def test_wrong_use_is_named(tiny_cfg):
    with pytest.raises(TypeError, match="not Linear"):
        KNetWithTTA(tiny_cfg, torch.nn.Linear(1, 1))
    model = build_model(tiny_cfg)
    tiny_cfg.TEST.AUG.MIN_SIZES = ()
    with pytest.raises(ValueError, match=r"TEST\.AUG\.MIN_SIZES is empty"):
        KNetWithTTA(tiny_cfg, model)
