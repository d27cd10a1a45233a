"""A tiny model on frames: the same results as ever, with ids that stay."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from knet.errors import UserError
from knet.predictor import KNetPredictor
from knet.tracking import LinkOptions, ObjectFollower


@pytest.fixture
def frames(tiny_shapes):
    from PIL import Image

    paths = sorted((tiny_shapes / "val" / "images").iterdir())[:2]
    return [np.array(Image.open(path)) for path in paths]


@pytest.fixture
def lenient(predictor):
    """The model finds things, however unsure it is."""
    options = predictor.model.task.options
    predictor.model.task.options = type(options)(
        **{**vars(options), "thing_threshold": 0.0, "overlap_threshold": 0.0}
    )
    return predictor


def test_segments_are_the_models_with_other_ids(lenient, frames):
    follower = ObjectFollower(lenient)
    assert follower.task == "panoptic"
    for number, frame in enumerate(frames, start=1):
        ids, segments = follower(frame, number)["panoptic_seg"]
        expected, records = lenient(frame)["panoptic_seg"]
        assert ids.dtype == torch.int32 and len(segments) == len(records)
        assert any(s["isthing"] for s in segments) and len({s["id"] for s in segments}) == len(
            segments
        )
        for ours, theirs in zip(segments, records):
            assert ((ids == ours["id"]) == (expected == theirs["id"])).all()
            assert ours["score"] == theirs["score"] and ours["area"] == theirs["area"]
            assert ours["isthing"] or ours["category_id"] == theirs["category_id"]
    # what others ask of the model stays as it was
    assert lenient.model.task.options.instance and set(lenient(frames[0])) > {"panoptic_seg"}


def test_a_standing_picture_keeps_all_ids(lenient, frames):
    follower = ObjectFollower(lenient)
    first, segments = follower(frames[0], 1)["panoptic_seg"]
    for number in (2, 7):  # frames may be missing
        again, others = follower(frames[0], number)["panoptic_seg"]
        assert (again == first).all() and others == segments
    new = ObjectFollower(lenient, options=LinkOptions(least=5.0))  # nothing is ever linked
    things = [s["id"] for s in segments if s["isthing"]]
    new(frames[0], 1)
    _, others = new(frames[0], 2)["panoptic_seg"]
    assert not {s["id"] for s in others if s["isthing"]} & set(things)
    # but a class of stuff has one id
    stuff = [s["id"] for s in segments if not s["isthing"]]
    assert [s["id"] for s in others if not s["isthing"]] == stuff


def test_instances_become_segments_the_best_in_front(lenient, frames):
    lenient.model.task.options = type(lenient.model.task.options)(top_k=30, panoptic=False)
    lenient.cfg.MODEL.KNET.TEST.PANOPTIC_ON = False
    follower = ObjectFollower(lenient)
    assert follower.task == "instance"
    ids, segments = follower(frames[0], 1)["panoptic_seg"]
    found = lenient(frames[0])["instances"]
    assert segments and all(s["isthing"] for s in segments)
    assert (found.pred_masks.any(0) == (ids > 0)).all()
    best = int(found.pred_masks.flatten(1).any(1).int().argmax())
    on_best = ids[found.pred_masks[best]]
    assert (on_best == on_best[0]).all()
    assert [s["area"] for s in segments] == [int((ids == s["id"]).sum()) for s in segments]
    kernels = lenient.predict(frames[0]).found.masks.shape[0]
    assert len(segments) <= kernels  # a kernel of several classes is one object
    high = float(found.scores.max())
    strict = ObjectFollower(lenient, score_threshold=high)
    assert [s["score"] for s in strict(frames[0], 1)["panoptic_seg"][1]] == [high]


def test_carried_kernels_are_the_first_ones_of_the_next_frame(lenient, frames):
    follower = ObjectFollower(lenient, carry_kernels=True)
    plain = ObjectFollower(lenient)
    first, again = (f(frames[0], 1)["panoptic_seg"][0] for f in (follower, plain))
    assert (first == again).all()  # there is nothing to carry yet
    carried = follower._carried
    last = lenient.predict(frames[0]).found.kernels
    assert torch.equal(carried.kernels[0], last)
    things = [s for s in follower(frames[1], 2)["panoptic_seg"][1] if s["isthing"]]
    assert things and carried.places.sum() > 0
    heads, x = lenient.model.heads, lenient.prepare(frames[1])
    with torch.no_grad():
        maps = lenient.model.backbone(lenient.model._images([x]))
        maps = [maps[name] for name in lenient.model.in_features]
        initial, rounds = heads(maps, carried=carried)
        fresh, _ = heads(maps)
    where = carried.places[0]
    assert torch.equal(initial.kernels[0, where], last[where])
    assert torch.equal(initial.kernels[0, ~where], fresh.kernels[0, ~where])
    masks = heads.rounds[-1].masks_of(carried.kernels, fresh.features)
    assert torch.equal(initial.masks[0, where], masks[0, where])
    found = lenient.predict(frames[1], carried=carried).found
    assert torch.allclose(found.masks, rounds[-1].masks[0], atol=1e-4)


def test_models_without_objects_to_follow(predictor, semantic_cfg):
    from detectron2.data import MetadataCatalog

    semantic = KNetPredictor(
        semantic_cfg, build_model(semantic_cfg), MetadataCatalog.get("tiny_val")
    )
    with pytest.raises(UserError, match="semantic maps have no objects"):
        ObjectFollower(semantic)
    with pytest.raises(UserError, match="semantic maps have no objects"):
        ObjectFollower(predictor, task="semantic")
    for key in ("KERNEL_PEAKS", "RESIDUAL_MASKS"):
        predictor.cfg.MODEL.KNET[key] = True
        with pytest.raises(UserError, match=key):
            ObjectFollower(predictor, carry_kernels=True)
        ObjectFollower(predictor)
        predictor.cfg.MODEL.KNET[key] = False
    predictor.cfg.MODEL.KNET.TEST.INSTANCE_ON = False
    with pytest.raises(UserError, match=r"TEST\.INSTANCE_ON off"):
        ObjectFollower(predictor, task="instance")
    predictor.cfg.TEST.AUG.ENABLED = True
    with pytest.raises(UserError, match=r"TEST\.AUG\.ENABLED False"):
        ObjectFollower(predictor)
