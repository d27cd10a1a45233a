"""Panoptic fusion, instances and semantic map."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from knet.accel.streamed_fusion import StreamedFusion
from knet.classes import ClassIds, find_classes
from knet.modeling.instances import InstanceSelection, mask_boxes
from knet.modeling.panoptic import PanopticFusion, kernel_scores
from knet.modeling.postprocess import InferenceOptions, SemanticScores, Streaming, postprocess
from knet.modeling.predictions import Frame, MaskPredictions, PixelPredictions


def fuse(probabilities, scores, labels, things=2, chunk=1, kind=PanopticFusion, **kwargs):
    fusion = kind(
        torch.tensor(scores), torch.tensor(labels), num_thing_classes=things,
        size=probabilities.shape[-2:], **kwargs,
    )  # fmt: skip
    for start in range(0, len(probabilities), chunk):
        fusion.add(start, probabilities[start : start + chunk])
    return fusion.finish()


def test_winner_takes_the_pixel_and_ids_follow_the_scores():
    p = torch.tensor([[[0.9, 0.9, 0.1, 0.1]], [[0.2, 0.2, 0.9, 0.2]], [[0.3, 0.3, 0.3, 0.9]]])
    id_map, segments = fuse(p, [0.5, 0.9, 0.7], [0, 1, 2])
    assert [(s.id, s.label, s.is_thing, s.area) for s in segments] == [
        (1, 1, True, 1),
        (2, 2, False, 1),
        (3, 0, True, 2),
    ]
    assert id_map.tolist() == [[3, 3, 1, 2]]
    assert id_map.dtype == torch.int32


def test_things_under_the_threshold_leave_void_but_stuff_stays():
    p = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]])
    id_map, segments = fuse(p, [0.29, 0.1], [0, 2])
    assert id_map.tolist() == [[0, 1]]
    assert [s.label for s in segments] == [2]


def test_overlap_rule_counts_won_pixels_against_own_mask():
    p = torch.zeros(2, 1, 10)
    p[0, 0, :] = 0.6  # a mask of 10 pixels
    p[1, 0, :5] = 0.9  # wins 5 of them
    _, segments = fuse(p, [0.5, 0.9], [0, 1])
    assert [s.label for s in segments] == [1]  # 5 / 10 < 0.6
    _, segments = fuse(p, [0.5, 0.9], [0, 1], overlap_threshold=0.5)
    assert [s.label for s in segments] == [1, 0]


def test_weak_stuff_becomes_void_but_not_weak_things():
    p = torch.zeros(3, 1, 9)
    for kernel in range(3):
        p[kernel, 0, 3 * kernel : 3 * kernel + 3] = 0.9
    weak = {"thing_threshold": 0.0, "things": 1}
    scores, labels = [0.2, 0.2, 0.25], [0, 1, 2]
    _, segments = fuse(p, scores, labels, **weak)
    assert [s.label for s in segments] == [2, 0, 1]
    ids, segments = fuse(p, scores, labels, **weak, stuff_threshold=0.25)  # exact in float32
    assert [s.label for s in segments] == [2, 0]
    assert ids[0].tolist() == [2] * 3 + [0] * 3 + [1] * 3


@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
@pytest.mark.parametrize("kind", [PanopticFusion, StreamedFusion])
@pytest.mark.parametrize("chosen", [None, [0, 2, 4, 6, 7, 8]])
def test_running_argmax_does_not_depend_on_the_chunks(chunk, kind, chosen):
    p = torch.rand(9, 13, 17)
    p[4] = p[2]  # a tie goes to the first, as argmax has it
    scores, labels = torch.rand(9).tolist(), [0, 1, 0, 1, 0, 1, 2, 3, 4]
    scores[4] = scores[2]
    options = {"thing_threshold": 0, "overlap_threshold": 0}
    if chosen is not None:
        options["chosen"] = torch.isin(torch.arange(9), torch.tensor(chosen))
    reference, segments = fuse(p, scores, labels, chunk=9, **options)
    id_map, found = fuse(p, scores, labels, chunk=chunk, kind=kind, **options)
    assert torch.equal(id_map, reference) and found == segments


def test_kernel_scores_of_things_and_stuff():
    class_scores = torch.tensor([[0.2, 0.7, 0.9, 0.9], [0.5, 0.1, 0.3, 0.2], [0.9, 0.9, 0.1, 0.8],
                                 [0.9, 0.9, 0.7, 0.6]])  # fmt: skip
    scores, labels = kernel_scores(class_scores, num_things=2, num_thing_classes=2)
    assert scores.tolist() == pytest.approx([0.7, 0.5, 0.1, 0.6])
    assert labels.tolist() == [1, 0, 2, 3]


def test_instances_take_the_best_pairs_and_share_masks():
    scores = torch.tensor([[0.9, 0.8], [0.1, 0.7], [0.2, 0.3]])
    selection = InstanceSelection(scores, top_k=3, size=(2, 2))
    assert selection.kernels == [0, 1]  # kernel 2 is never resized
    p = torch.tensor([[[0.6, 0.5], [0.1, 0.1]], [[0.1, 0.1], [0.1, 0.9]]])
    selection.add([0, 1], p)
    result = selection.finish()
    assert result.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert result.labels.tolist() == [0, 1, 1]
    assert result.masks.tolist()[1] == [[True, False], [False, False]]
    assert result.boxes.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 2, 2]]


def test_fewer_pairs_than_top_k_and_score_threshold():
    scores = torch.tensor([[0.9, 0.05]])
    assert len(InstanceSelection(scores, top_k=100, size=(2, 2)).finish().scores) == 2
    kept = InstanceSelection(scores, top_k=100, size=(2, 2), score_threshold=0.1).finish()
    assert kept.scores.tolist() == pytest.approx([0.9])
    none = InstanceSelection(scores, top_k=100, size=(2, 2), score_threshold=0.95).finish()
    assert none.masks.shape == (0, 2, 2) and none.boxes.shape == (0, 4)


def test_boxes_of_masks():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 2:4, 1:7] = True
    masks[1, 5, 7] = True
    assert mask_boxes(masks).tolist() == [[1, 2, 7, 4], [7, 5, 8, 6], [0, 0, 0, 0]]


def test_semantic_argmax_is_the_label_of_the_panoptic_winner():
    p, scores = torch.rand(7, 5, 6), torch.rand(7)
    labels = torch.tensor([0, 1, 0, 1, 0, 2, 3])
    semantic = SemanticScores(scores, labels, num_classes=4, size=(5, 6))
    semantic.add(0, p)
    winner = (scores[:, None, None] * p).argmax(0)
    assert torch.equal(semantic.finish().argmax(0), labels[winner])


def test_only_what_is_asked_for():
    result = postprocess(
        MaskPredictions(torch.rand(6, 4), torch.randn(6, 4, 4), Frame((32, 32), (30, 20))),
        num_thing_classes=3, num_stuff_classes=1, output_size=(15, 10),
        options=InferenceOptions(panoptic=False, semantic=False, top_k=4),
    )  # fmt: skip
    assert result.panoptic is None and result.semantic is None
    assert result.instances.masks.shape == (4, 15, 10)
    assert result.instances.labels.max() < 3


def test_grid_probabilities_follow_the_enlargement():
    masks = torch.randn(4, 3, 5)
    predictions = MaskPredictions(torch.rand(4, 2), masks, Frame((24, 40), (24, 40)), upsample=2)
    assert predictions.grid_size == (6, 10)
    large = F.interpolate(masks[None], scale_factor=2, mode="bilinear")[0].sigmoid()
    assert torch.equal(predictions.probabilities([2, 0]), large[[2, 0]])
    assert predictions.probabilities([]).shape[0] == 0
    ready = MaskPredictions(torch.rand(4, 2), large, predictions.frame, are_logits=False)
    assert torch.equal(ready.probabilities(range(4)), large)


def test_pixel_probabilities_are_the_softmax_of_resized_logits():
    logits = 5 * torch.randn(3, 6, 8)
    found = PixelPredictions(logits, Frame((24, 32), (21, 30))).probabilities((40, 50))

    def interpolate(x, size):
        return F.interpolate(x[None], size=size, mode="bilinear")[0]

    expected = interpolate(interpolate(logits, (24, 32))[:, :21, :30], (40, 50)).softmax(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


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


def test_results_name_the_kernels_that_found_them():
    result = run()
    assert [(s.label, s.kernel) for s in result.panoptic[1]] == [(0, 0), (1, 1), (2, 3)]
    assert result.instances.kernels.tolist() == [0, 1, 2, 1, 0, 2]
    # the order changes with the scores
    found = run(mask_scores=True, min_area=10).instances
    assert found.kernels.tolist() == [0, 1, 1, 0]
    for mask, kernel in zip(found.masks, found.kernels.tolist()):
        top, bottom, left, right = BOXES[kernel]
        assert mask[top:bottom, left:right].all() and mask.sum() == 20


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


@pytest.mark.parametrize("kind", [PanopticFusion, StreamedFusion])
def test_panoptic_scores_of_class_and_mask(kind):
    # things of 0.9 * 0.6 and 0.8 * 0.9 want the second row, as does stuff of 0.5 * 0.95
    masks = torch.full((3, 4, W), 0.05)
    masks[0, :2], masks[1, 1:3], masks[2, 1:] = 0.6, 0.9, 0.95
    scores = torch.tensor([[0.9, 0], [0.8, 0], [0, 0.5]])

    def found(masks=masks, **options):
        predictions = MaskPredictions(scores, masks, Frame((4, W), (4, W)), are_logits=False)
        id_map, segments = postprocess(
            predictions, num_thing_classes=1, num_stuff_classes=1, output_size=(4, W),
            options=InferenceOptions(instance=False, overlap_threshold=0.4, **options),
            streaming=Streaming(fusion=kind),
        ).panoptic  # fmt: skip
        return id_map[:, 0].tolist(), [round(s.score, 3) for s in segments]

    assert found() == ([1, 2, 2, 0], [0.9, 0.8])  # stuff wins less than 0.4 of its mask
    assert found(panoptic_mask_scores=1.0)[1] == [0.72, 0.54]
    assert found(panoptic_mask_scores=2.0) == ([2, 1, 1, 0], [0.648, 0.324])
    assert found(panoptic_mask_scores=2.0, thing_threshold=0.33) == ([0, 1, 1, 0], [0.648])
    # 0.8 * 0.6 ** 2 falls behind stuff of 0.5 * 0.95 ** 2, which class scores alone would not
    masks = masks.clone()
    masks[1, 1:3] = 0.6
    assert found(masks) == ([1, 1, 2, 0], [0.9, 0.8])
    assert found(masks, panoptic_mask_scores=2.0) == ([2, 1, 1, 1], [0.451, 0.324])


def test_a_mask_that_reaches_one_half_nowhere_takes_no_pixel_by_quality():
    masks = torch.tensor([[[0.4, 0.4]], [[0.6, 0.1]]])
    predictions = MaskPredictions(
        torch.tensor([[0.9], [0.5]]), masks, Frame((1, 2), (1, 2)), are_logits=False
    )
    for power, expected in ((0.0, [0, 0]), (2.0, [1, 1])):
        id_map, _ = postprocess(
            predictions, num_thing_classes=1, num_stuff_classes=0, output_size=(1, 2),
            options=InferenceOptions(thing_threshold=0.0, panoptic_mask_scores=power),
        ).panoptic  # fmt: skip
        assert id_map[0].tolist() == expected


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
