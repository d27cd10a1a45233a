"""Each key of MODEL.KNET.TEST changes results as its comment says."""

import pytest
import torch
from detectron2.modeling import build_model

from knet.classes import ClassIds, find_classes
from knet.modeling.postprocess import InferenceOptions, Streaming, postprocess
from knet.modeling.predictions import Frame, MaskPredictions

H, W = 8, 10
# three things of T = 2 classes, two stuff kernels
SCORES = torch.tensor(
    [[0.9, 0.2, 0, 0], [0.3, 0.8, 0, 0], [0.6, 0.1, 0, 0], [0, 0, 0.7, 0], [0, 0, 0, 0.5]]
)
BOXES = [(0, 4, 0, 5), (0, 4, 5, 10), (6, 8, 0, 1), (4, 8, 0, 10), (0, 8, 0, 10)]


def run(streaming=Streaming(), **options):  # noqa: B008  (it is frozen)
    masks = torch.full((5, H, W), 0.05)
    for mask, (top, bottom, left, right) in zip(masks, BOXES):
        mask[top:bottom, left:right] = 0.9
    masks[4] = 0.4  # unsure everywhere
    masks[4, 7, 9] = 0.6
    predictions = MaskPredictions(SCORES, masks, Frame((H, W), (H, W)), are_logits=False)
    return postprocess(
        predictions, num_thing_classes=2, num_stuff_classes=2, output_size=(H, W),
        options=InferenceOptions(**options), streaming=streaming,
    )  # fmt: skip


def pairs(result):
    found = result.instances
    return [(round(s, 2), label) for s, label in zip(found.scores.tolist(), found.labels.tolist())]


def areas(result):
    id_map, segments = result.panoptic
    assert all(int((id_map == s.id).sum()) == s.area for s in segments)
    return {s.label: s.area for s in segments}


def test_published_results():
    result = run()
    assert pairs(result) == [(0.9, 0), (0.8, 1), (0.6, 0), (0.3, 0), (0.2, 1), (0.1, 1)]
    # the third thing loses its two pixels to the first stuff class; so does the second one
    assert areas(result) == {0: 20, 1: 20, 2: 40}


def test_score_threshold_and_top_k():
    assert pairs(run(score_threshold=0.6)) == [(0.9, 0), (0.8, 1), (0.6, 0)]
    assert pairs(run(top_k=2)) == [(0.9, 0), (0.8, 1)]
    assert areas(run(score_threshold=0.95, top_k=1)) == areas(run())  # instances only


def test_mask_threshold():
    assert run(mask_threshold=0.95).instances.masks.sum() == 0
    assert run(mask_threshold=0.01).instances.masks.all()


def test_mask_scores_rank_by_class_and_mask():
    # the first mask is unsure: 0.9 * 0.6 falls behind 0.8 * 0.9
    masks = torch.full((2, H, W), 0.05)
    masks[0, :4], masks[1, 4:] = 0.6, 0.9
    predictions = MaskPredictions(
        torch.tensor([[0.9], [0.8]]), masks, Frame((H, W), (H, W)), are_logits=False
    )

    def ranked(**options):
        return postprocess(
            predictions, num_thing_classes=1, num_stuff_classes=0, output_size=(H, W),
            options=InferenceOptions(panoptic=False, semantic=False, **options),
        ).instances  # fmt: skip

    plain, found = ranked(), ranked(mask_scores=True)
    assert found.scores.tolist() == pytest.approx([0.72, 0.54])
    for ours, theirs in ((found.masks, plain.masks), (found.boxes, plain.boxes)):
        assert torch.equal(ours, theirs.flip(0))
    assert ranked(mask_scores=True, score_threshold=0.6).scores.tolist() == pytest.approx([0.72])
    assert len(ranked(mask_scores=True, min_area=H * W).scores) == 0


def test_panoptic_thresholds():
    assert areas(run(thing_threshold=0.85)) == {0: 20, 2: 40}
    assert areas(run(overlap_threshold=1.01)) == {}
    assert pairs(run(thing_threshold=0.85, overlap_threshold=1.01)) == pairs(run())


@pytest.mark.parametrize("least, kept", [(1, 6), (2, 6), (3, 4), (20, 4), (21, 0)])
def test_min_area_of_instances(least, kept):
    result, plain = run(min_area=least), run()
    chosen = plain.instances.masks.flatten(1).sum(1) >= least
    assert len(pairs(result)) == kept == int(chosen.sum())
    for field in ("scores", "labels", "masks", "boxes"):
        assert torch.equal(
            getattr(result.instances, field), getattr(plain.instances, field)[chosen]
        )


def test_min_area_is_applied_behind_the_top_k():
    assert pairs(run(min_area=3, top_k=3)) == [(0.9, 0), (0.8, 1)]


def test_min_area_of_segments():
    assert areas(run(min_area=20)) == {0: 20, 1: 20, 2: 40}
    assert areas(run(min_area=21)) == {2: 40}


def test_classes_take_no_place_from_each_other():
    result = run(classes=(1, 2), top_k=2)
    assert pairs(result) == [(0.8, 1), (0.2, 1)]
    # class 0 leaves its place void, as class 2 has but 0.05 there
    assert areas(result) == {1: 20, 2: 40}
    assert not result.panoptic[0][:4, :5].any()
    assert torch.equal(result.semantic, run().semantic)


def test_a_chosen_class_does_not_flood_the_image():
    assert areas(run(classes=(2,))) == {2: 40}
    assert pairs(run(classes=(2,))) == []
    # nobody is above 0.5 but at one pixel, where it wins alone
    assert areas(run(classes=(3,), overlap_threshold=0.0)) == {3: 1}


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_all_classes_chosen_is_no_choice(chunk):
    streaming = Streaming(chunk_bytes=chunk * 4 * H * W)
    every, plain = run(streaming, classes=(0, 1, 2, 3)), run(streaming)
    assert torch.equal(every.panoptic[0], plain.panoptic[0])
    assert every.panoptic[1] == plain.panoptic[1]
    assert torch.equal(every.instances.masks, plain.instances.masks)
    assert areas(run(classes=(1, 2))) == {1: 20, 2: 40}


def test_no_kernel_at_all():
    empty = MaskPredictions(torch.zeros(0, 2), torch.zeros(0, 4, 4), Frame((8, 8), (8, 8)))
    result = postprocess(
        empty, num_thing_classes=2, num_stuff_classes=0, output_size=(8, 8),
        options=InferenceOptions(),
    )  # fmt: skip
    assert result.panoptic[1] == [] and not result.panoptic[0].any()
    assert len(result.instances.scores) == 0


IDS, NAMES = ClassIds((4, 9), (0, 7)), ("cat", "Dog", "sky", "skylight")


def test_classes_by_name_and_label():
    assert find_classes([], IDS, NAMES) is None
    assert find_classes(["sky", 4], IDS, NAMES) == (0, 2)
    assert find_classes(["a"], ClassIds((0,), (1,)), ("a", "a")) == (0, 1)
    assert find_classes([7], IDS, None) == (3,)


@pytest.mark.parametrize(
    "entry, names, words",
    [
        ("dog", NAMES, "TEST.CLASSES: no class 'dog'; did you mean 'Dog'"),
        ("skyl", NAMES, "'sky', 'skylight'|'skylight', 'sky'"),
        ("zebra", NAMES, "the 4 classes are 'cat', 'Dog', 'sky', 'skylight'$"),
        (3, NAMES, "no class with label 3; labels are 0 to 9"),
        ("cat", None, "no data set"),
    ],
)
def test_unknown_classes(entry, names, words):
    with pytest.raises(ValueError, match=words):
        find_classes([entry], IDS, names)


def test_keys_reach_the_model(tiny_cfg):
    tiny_cfg.merge_from_list(
        ["TEST.DETECTIONS_PER_IMAGE", 7, "MODEL.KNET.TEST.SCORE_THRESH", 0.1,
         "MODEL.KNET.TEST.MASK_THRESH", 0.2, "MODEL.KNET.TEST.THING_THRESH", 0.0,
         "MODEL.KNET.TEST.OVERLAP_THRESH", 0.0, "MODEL.KNET.TEST.MIN_AREA", 5]
    )  # fmt: skip
    x = {"image": torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)}
    model = build_model(tiny_cfg).eval()
    options = model.task.options
    assert (options.top_k, options.score_threshold, options.mask_threshold) == (7, 0.1, 0.2)
    assert (options.thing_threshold, options.overlap_threshold, options.min_area) == (0, 0, 5)
    assert options.classes is None
    tiny_cfg.MODEL.KNET.TEST.CLASSES = ["star", "stripes"]
    chosen = build_model(tiny_cfg).eval()
    chosen.load_state_dict(model.state_dict())
    (everything,), (some,) = model([x]), chosen([x])
    labels = [chosen.task.class_ids.things[chosen.task.options.classes[0]]]
    assert set(some["instances"].pred_classes.tolist()) <= set(labels)
    assert {s["category_id"] for s in some["panoptic_seg"][1]} <= set(chosen.task.options.classes)
    assert torch.equal(some["sem_seg"], everything["sem_seg"])
    tiny_cfg.MODEL.KNET.TEST.CLASSES = ["stars"]
    with pytest.raises(ValueError, match="no class 'stars'; did you mean 'star'"):
        build_model(tiny_cfg)


def test_semantic_models_refuse_them(semantic_cfg):
    semantic_cfg.MODEL.KNET.TEST.MIN_AREA = 5
    with pytest.raises(ValueError, match=r"TEST\.CLASSES .* choose among instances"):
        build_model(semantic_cfg)
