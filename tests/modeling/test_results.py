"""Panoptic fusion, instances and semantic map."""

import pytest
import torch
import torch.nn.functional as F

from knet.accel.streamed_fusion import StreamedFusion
from knet.modeling.instances import InstanceSelection, mask_boxes
from knet.modeling.panoptic import PanopticFusion, kernel_scores
from knet.modeling.postprocess import InferenceOptions, SemanticScores, postprocess
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
