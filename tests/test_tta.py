"""Test-time augmentation of whole models, and the merging of views."""

import pytest
import torch
from detectron2.modeling import build_model

from knet.modeling.predictions import Frame, MaskPredictions, PixelPredictions
from knet.modeling.task import SemanticTask
from knet.tta import KNetWithTTA, PixelViews, View, finest_first, merge_views


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
    merged = PixelViews(views[:2]).probabilities((48, 64))
    torch.testing.assert_close(merged, first, rtol=0, atol=1e-6)
    merged = PixelViews(views).probabilities((48, 64))
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


THINGS, STUFF = 4, 2
WHOLE = Frame((48, 64), (48, 64))


def disc(size, centre, radius, stride=1):
    """Logits of a disc in pixels of the image, on a grid of `size`."""
    y = (torch.arange(size[0]) + 0.5) * stride - centre[0]
    x = (torch.arange(size[1]) + 0.5) * stride - centre[1]
    return 2 * (radius - (y[:, None].square() + x.square()).sqrt())


def random_predictions(frame=WHOLE, upsample=2):
    return MaskPredictions(
        torch.rand(THINGS + STUFF, 5), torch.randn(THINGS + STUFF, 12, 16), frame, upsample
    )


def mirrored(p):
    return View(MaskPredictions(p.class_scores, p.masks.flip(-1), p.frame, p.upsample), True)


def test_one_view_stays_as_it_is():
    first = random_predictions(Frame((48, 64), (41, 60)))
    merged = merge_views([View(first)], num_stuff_classes=STUFF)
    assert torch.equal(merged.class_scores, first.class_scores)
    everything = range(THINGS + STUFF)
    assert torch.equal(merged.probabilities(everything), first.probabilities(everything))
    assert merged.frame == first.frame


@pytest.mark.parametrize("upsample, error", [(1, 0), (2, 1e-6)])  # enlarging rounds
def test_mirror_image_changes_nothing(upsample, error):
    first = random_predictions(upsample=upsample)
    merged = merge_views([View(first), mirrored(first)], num_stuff_classes=STUFF)
    expected = first.probabilities(range(THINGS + STUFF))
    torch.testing.assert_close(merged.masks, expected, rtol=0, atol=error)
    assert torch.equal(merged.class_scores, first.class_scores)


def test_things_are_found_again_in_another_order():
    first = random_predictions()
    order = torch.tensor([2, 0, 3, 1, 4, 5])  # stuff keeps its places
    other = MaskPredictions(first.class_scores[order], first.masks[order], WHOLE, 2)
    merged = merge_views([View(first), View(other)], num_stuff_classes=STUFF)
    everything = range(THINGS + STUFF)
    assert torch.equal(merged.probabilities(everything), first.probabilities(everything))
    torch.testing.assert_close(merged.class_scores, first.class_scores)


def test_views_are_averaged():
    first = random_predictions()
    other = random_predictions()
    other.masks[:THINGS] = first.masks[:THINGS] + 0.1 * torch.randn(THINGS, 12, 16)
    views = [View(first), View(other), View(first)]
    merged = merge_views(views, num_stuff_classes=STUFF)
    everything = range(THINGS + STUFF)
    a, b = first.probabilities(everything), other.probabilities(everything)
    torch.testing.assert_close(merged.masks, (2 * a + b) / 3)
    torch.testing.assert_close(
        merged.class_scores, (2 * first.class_scores + other.class_scores) / 3
    )


def found(centres, scores, frame=WHOLE):
    """Discs of radius 6, one class each, and one stuff kernel."""
    masks = [disc((48, 64), c, 6) for c in centres] + [torch.zeros(48, 64)]
    classes = torch.full((len(masks), 3), 0.01)
    classes[:-1, 0] = torch.tensor(scores)
    return MaskPredictions(classes, torch.stack(masks), frame)


@pytest.mark.parametrize("others, share", [(1, 1.0), (3, 0.5), (5, 1 / 3)])
def test_score_of_an_object_that_one_view_shows(others, share):
    """It is kept where that is half of the views, and sinks in proportion where it is less."""
    one = View(found([(30, 50), (10, 10)], [0.8, 0.7]))
    rest = [View(found([(10, 10)], [0.9])) for _ in range(others)]
    merged = merge_views([*rest, one], num_stuff_classes=1)
    mean = (0.9 * others + 0.7) / (others + 1)
    assert merged.class_scores[:, 0].tolist() == pytest.approx([mean, 0.8 * share, 0.01])
    shown = merged.masks > 0.5
    assert torch.equal(shown[0], disc((48, 64), (10, 10), 6) > 0)
    assert torch.equal(shown[1], disc((48, 64), (30, 50), 6) > 0)

    # one that only the first view shows likewise, with its whole mask
    merged = merge_views([one, *rest], num_stuff_classes=1)
    assert merged.class_scores[:, 0].tolist() == pytest.approx([0.8 * share, mean, 0.01])
    assert torch.equal(merged.masks[0] > 0.5, disc((48, 64), (30, 50), 6) > 0)


def test_unsure_kernels_of_later_views_are_left_out():
    views = [View(found([(10, 10)], [0.9])), View(found([(30, 50)], [0.04]))]
    merged = merge_views(views, num_stuff_classes=1)
    assert merged.class_scores[:, 0].tolist() == pytest.approx([0.9, 0.01])


def test_same_mask_of_another_class_goes_to_its_own_class():
    masks = torch.stack([disc((48, 64), (20, 30), 10)] * 2)
    scores = torch.tensor([[0.9, 0.0], [0.0, 0.8]])
    views = [View(MaskPredictions(s, masks, WHOLE)) for s in (scores, scores.flip(0))]
    merged = merge_views(views, num_stuff_classes=0)
    torch.testing.assert_close(merged.class_scores, scores)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("scale, view_padded", [(2, (192, 256)), (2, (192, 224)), (0.5, (64, 64))])
@pytest.mark.parametrize("centre, radius", [((45, 50), 24), ((30, 20), 14)])
def test_views_of_other_sizes_align(centre, radius, scale, view_padded, flipped):
    # an image of 90 x 100 on a grid of stride 2; the view is padded otherwise
    first = MaskPredictions(
        torch.tensor([[0.8, 0.1]]), disc((48, 64), centre, radius, 2)[None], Frame((96, 128),
                                                                                   (90, 100)),
    )  # fmt: skip
    y, x = (c * scale for c in (centre[0], 100 - centre[1] if flipped else centre[1]))
    size = (int(90 * scale), int(100 * scale))
    grid = (view_padded[0] // 2, view_padded[1] // 2)
    other = MaskPredictions(
        torch.tensor([[0.6, 0.1]]), disc(grid, (y, x), radius * scale, 2)[None],
        Frame(view_padded, size),
    )  # fmt: skip
    merged = merge_views([View(first), View(other, flipped)], num_stuff_classes=0)
    assert merged.class_scores[:, 0].tolist() == pytest.approx([0.7])  # one object
    # what the second view alone says lies where the first has it
    theirs = 2 * merged.masks[0] - first.probabilities([0])[0]
    a, b = theirs > 0.5, first.masks[0] > 0
    assert (a & b).sum() / (a | b).sum() > 0.95


def test_nothing_lies_beside_the_image():
    frame = Frame((48, 64), (40, 50))
    views = [View(found([(10, 10)], [0.9], frame)), View(found([(10, 10)], [0.9], frame), False)]
    views[1].predictions.masks[:] = 9.0  # also in the padding
    merged = merge_views(views, num_stuff_classes=1)
    stuff = merged.masks[-1]
    assert stuff[40:].max() == 0.25 and stuff[:, 50:].max() == 0.25  # half of the first view's
    assert stuff[:40, :50].min() > 0.7


def test_first_view_must_not_be_mirrored():
    with pytest.raises(ValueError, match="first view"):
        merge_views([mirrored(random_predictions())], num_stuff_classes=STUFF)


def test_the_finest_upright_view_gives_the_grid():
    fine = Frame((96, 128), (96, 128))
    coarse, sharp = random_predictions(), MaskPredictions(
        torch.rand(THINGS + STUFF, 5), torch.randn(THINGS + STUFF, 24, 32), fine, 2
    )  # fmt: skip
    views = [View(coarse), mirrored(sharp), View(sharp), mirrored(coarse)]
    merged = merge_views(finest_first(views), num_stuff_classes=STUFF)
    assert merged.grid_size == sharp.grid_size and merged.frame == fine
