"""Kernels that only training has: mask pilots, and one-to-many kernels."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import nn

from knet.accel.streamed_losses import StreamedPixels
from knet.modeling import training_kernels
from knet.modeling.losses import AllPixels, SampledPoints
from knet.modeling.outputs import InitialKernels, RoundOutput
from knet.modeling.positions import PlaceEncoding, spread_places
from knet.modeling.targets import BatchTargets, ImageTargets
from knet.modeling.training_kernels import ManyKernels, MaskPilots, noised, reduced


@pytest.fixture
def no_noise(monkeypatch):
    for name in ("_SHIFT", "_STRETCH", "_WRONG_PIXELS", "_WRONG_CLASS"):
        monkeypatch.setattr(training_kernels, name, 0.0)


def _boxes(*boxes, size=(40, 60)):
    """Boolean masks of boxes (top, bottom, left, right)."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    return masks


def _targets(*counts, size=(8, 8)):
    """Object i of an image is its row i; its class is i % 3."""
    images = []
    for count in counts:
        masks = torch.zeros(count, *size)
        masks[range(count), range(count)] = 1
        images.append(ImageTargets(torch.arange(count) % 3, torch.arange(0), masks.half()))
    return BatchTargets.collate(images, torch.device("cpu"))


def test_reduced_masks_keep_small_objects():
    masks = torch.zeros(3, 4, 8)
    masks[0, :2, :3] = 1  # a whole pixel of the result, and half of the next: not above a half
    masks[1, 3, 7] = 0.25  # the only trace of a small object
    assert reduced(masks, (2, 4)).int().tolist() == [
        [[1, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 1]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    assert reduced(masks[:0].half(), (2, 4)).shape == (1, 2, 4)


def test_without_noise_masks_stay(no_noise):
    masks = _boxes((0, 7, 3, 5), (39, 40, 59, 60), (2, 2, 0, 0), (5, 30, 0, 60))[None]
    others = noised(masks)
    assert all(torch.equal(next(others), masks) for _ in range(3))


def test_masks_move_and_stretch_within_bounds(monkeypatch):
    monkeypatch.setattr(training_kernels, "_WRONG_PIXELS", 0.0)
    masks = _boxes((10, 30, 20, 40)).expand(8, 25, -1, -1)
    found, again = (next(others) for others in [noised(masks)] * 2)
    assert not torch.equal(found, again)
    lows, highs = [], []
    for axis in (2, 3):
        inside = found.any(5 - axis).flatten(0, 1)
        cells = torch.arange(inside.shape[1])
        lows.append(torch.where(inside, cells, 99).amin(1))
        highs.append(torch.where(inside, cells, -1).amax(1) + 1)
    low, high = torch.stack(lows), torch.stack(highs)
    # boxes stay boxes
    assert torch.equal((high - low).prod(0), found.sum((2, 3)).flatten())
    lengths, centres = (high - low).float(), (high + low) / 2 - torch.tensor([[20.0], [30.0]])
    assert lengths.min() >= 16 and lengths.max() <= 24 + 1 and lengths.std() > 1
    assert centres.abs().max() <= 2 + 0.5 and centres.std() > 0.5
    assert abs(centres.mean()) < 0.3


def test_wrong_pixels_go_with_the_area(monkeypatch):
    for name in ("_SHIFT", "_STRETCH"):
        monkeypatch.setattr(training_kernels, name, 0.0)
    masks = _boxes((0, 20, 0, 60), (0, 5, 0, 12), (0, 0, 0, 0))
    wrong = masks ^ next(noised(masks.expand(100, -1, -1, -1)))
    counts = wrong.sum((2, 3)).float().mean(0)
    torch.testing.assert_close(counts, torch.tensor([240.0, 12.0, 0.0]), rtol=0.1, atol=0)
    assert wrong[:, 0, 20:].any() and wrong[:, 0, :20].any()  # on both sides


def test_a_pixel_is_not_lost():
    masks = _boxes(*[(9, 10, 9, 10)] * 200)[None]
    assert next(noised(masks)).flatten(2).any(2).all()


def test_the_border_of_the_image_is_no_edge(monkeypatch):
    for name in ("_STRETCH", "_WRONG_PIXELS"):
        monkeypatch.setattr(training_kernels, name, 0.0)
    found = next(noised(_boxes(*[(0, 20, 20, 40)] * 50)[None]))
    assert found[0].any(2)[:, 0].all()  # moved down, it still begins at the top
    assert found[0].any(2).sum(1).unique().tolist() == [18, 19, 20, 21, 22]


class _Rounds(nn.Module):
    """Keeps what it was given; every round predicts the opposite."""

    def forward(self, features, kernels, masks, levels=(), given=None, grouping=None):
        self.kernels, self.masks = kernels, masks
        self.given = None if given is None else [next(given) for _ in range(3)]
        return [RoundOutput(kernels[..., :3], -masks, kernels) for _ in range(3)]


def _initial(batch, dim=4, size=(4, 4)):
    features = torch.randn(batch, dim, *size)
    localising = torch.randn(batch, dim, *size)
    return InitialKernels(features, None, None, None, localising=localising)


def test_pilots_gather_from_the_truth_in_every_round(no_noise):
    pilots = MaskPilots(num_thing_classes=3, hidden_dim=4, copies=2, most=6)
    initial, rounds = _initial(3, size=(8, 8)), _Rounds()
    targets = _targets(2, 0, 5)
    group = pilots(initial, rounds, targets)
    objects = torch.tensor([[0, 1, 0, 1, 0, 1], [-1] * 6])
    rows = torch.arange(8) == objects[..., None]
    truth = torch.where(rows[..., None], 3.0, -3.0).expand(-1, -1, -1, 8)
    for masks in (rounds.masks, *rounds.given):
        assert torch.equal(masks[:2], truth)
    labels = objects[0] % 3
    expected = pilots.classes.weight[labels] + initial.features[0].sum(2).T[objects[0]]
    torch.testing.assert_close(rounds.kernels[0], expected)
    torch.testing.assert_close(rounds.kernels[1], pilots.classes.weight[[0] * 6])  # no pixel

    # 4 pilots of the first image, the other two fill up; a random 6 of the 10 of the last
    image, kernel, target, label = group.rows
    assert image.tolist() == [0] * 4 + [2] * 6
    assert kernel.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert target[:4].tolist() == [0, 1, 0, 1] and label[:4].tolist() == [0, 1, 0, 1]
    assert sorted(target[4:9].tolist()) == [2, 3, 4, 5, 6]  # each object once before one twice
    assert target[9] == target[4]
    assert torch.equal(label[4:], (target[4:] - 2) % 3)
    last = rounds.masks[2] > 0
    assert torch.equal(last, targets.masks[target[4:]] > 0)
    assert group.masks is None and group.name == "pilot"
    again = {tuple(pilots(initial, rounds, targets).rows.target[4:].tolist()) for _ in range(5)}
    assert len(again) > 1


def test_noise_differs_from_round_to_round():
    rounds = _Rounds()
    pilots = MaskPilots(num_thing_classes=3, hidden_dim=4, copies=2, most=100)
    pilots(_initial(1, size=(32, 32)), rounds, _targets(5, size=(32, 32)))
    first, second, third = rounds.given
    assert torch.equal(first, rounds.masks)  # which the kernels have gathered from
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_some_pilots_begin_with_another_class_but_learn_their_own():
    pilots, rounds = MaskPilots(num_thing_classes=3, hidden_dim=4, copies=200, most=1000), _Rounds()
    initial = InitialKernels(torch.zeros(1, 4, 8, 8), None, None, None)
    group = pilots(initial, rounds, _targets(5))
    assert torch.equal(group.rows.label, torch.arange(5).repeat(200) % 3)
    begun = (rounds.kernels[0][:, None] == pilots.classes.weight).all(2).int().argmax(1)
    wrong = (begun != group.rows.label).float().mean().item()
    assert wrong == pytest.approx(0.2 * 2 / 3, abs=0.04)  # of what is drawn a third is right
    assert begun.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("kernels", "repeats", "count"), [(12, 3, 36), (100, 6, 300), (400, 2, 400)]
)
def test_number_of_one_to_many_kernels(kernels, repeats, count):
    many = ManyKernels(hidden_dim=4, num_kernels=kernels, repeats=repeats)
    initial, rounds = _initial(2), _Rounds()
    group = many(initial, rounds, _targets(0, 0))
    weight = many.kernels.weight.flatten(1)
    masks = torch.einsum("nc,bchw->bnhw", weight, initial.localising)
    torch.testing.assert_close(group.masks, masks)
    assert masks.shape == (2, count, 4, 4) and group.repeats == repeats and group.rows is None
    gathered = torch.einsum("bnhw,bchw->bnc", (masks > 0).float(), initial.features)
    torch.testing.assert_close(rounds.kernels, weight + gathered)
    assert rounds.given is None and rounds.masks is group.masks


def test_one_to_many_kernels_on_places():
    places = PlaceEncoding(16)
    many = ManyKernels(hidden_dim=16, num_kernels=5, repeats=2, places=places)
    expected = places.kernels(spread_places(10))
    assert torch.equal(many.kernels.weight.flatten(1), expected)


def _input(objects=2, size=96):
    instances = Instances((size, size))
    masks = torch.zeros(objects, size, size, dtype=torch.bool)
    for i in range(objects):
        masks[i, 20 * i + 8 : 20 * i + 30, 10:50] = True
    instances.gt_masks = BitMasks(masks)
    instances.gt_classes = torch.arange(objects) % 3
    generator = torch.Generator().manual_seed(objects)
    image = torch.rand(3, size, size, generator=generator) * 255
    return {"image": image, "instances": instances, "sem_seg": torch.full((size, size), 255)}


def _model(cfg, **keys):
    cfg = cfg.clone()
    cfg.merge_from_list([part for key, v in keys.items() for part in (f"MODEL.KNET.{key}", v)])
    torch.manual_seed(0)
    return build_model(cfg)


NAMES = {
    "MASK_PILOTS": [f"loss_pilot_round{s}_{t}" for s in (1, 2, 3) for t in ("mask", "dice", "cls")],
    "ONE_TO_MANY": [f"loss_many_round{s}_{t}" for s in (1, 2, 3) for t in ("mask", "dice", "cls")]
    + ["loss_many_init_mask", "loss_many_init_dice"],
}


@pytest.mark.parametrize("keys", [{"MASK_PILOTS": 3}, {"ONE_TO_MANY": 2}])
@pytest.mark.parametrize(
    "option",
    [{}, {"KERNEL_PEAKS": True}, {"RESIDUAL_MASKS": True}, {"ROUND_LEVELS": ["res3", "res4"]}],
)
def test_the_model_itself_stays_as_it_is(tiny_cfg, keys, option):
    plain, model = _model(tiny_cfg, **option), _model(tiny_cfg, **option, **keys)
    misfits = model.load_state_dict(plain.state_dict(), strict=False)
    assert misfits.missing_keys and not misfits.unexpected_keys
    assert all(name.startswith("heads.training_kernels.") for name in misfits.missing_keys)
    batch = [_input(2), _input(3)]
    expected, losses = plain.train()(batch), model.train()(batch)
    (key,) = keys
    assert sorted(set(losses) - set(expected)) == sorted(NAMES[key])
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    assert all(losses[name] > 0 for name in NAMES[key])
    with torch.no_grad():
        theirs, ours = (m.eval()(batch[:1])[0]["sem_seg"] for m in (plain, model))
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("places", [AllPixels, StreamedPixels, partial(SampledPoints, 60)])
@pytest.mark.parametrize("objects", [0, 2])
def test_every_parameter_has_a_gradient_whatever_the_truth(tiny_cfg, places, objects):
    model = _model(tiny_cfg, MASK_PILOTS=2, ONE_TO_MANY=2).train()
    model.criterion.places = places()
    losses = model([_input(objects), _input(0)])
    assert set(NAMES["MASK_PILOTS"] + NAMES["ONE_TO_MANY"]) < set(losses)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    parts = model.heads.training_kernels
    assert bool(parts["pilots"].classes.weight.grad.any()) == bool(objects)
    assert parts["many"].kernels.weight.grad.any()  # all of them are background then
    for name in NAMES["MASK_PILOTS"]:
        assert bool(losses[name] > 0) == bool(objects)


@pytest.mark.parametrize("kind", ["pilot", "many"])
def test_gradients_stay_within_a_group(tiny_cfg, kind):
    model = _model(tiny_cfg, MASK_PILOTS=2, ONE_TO_MANY=2).train()
    losses = model([_input(2)])
    sum(value for name, value in losses.items() if f"_{kind}_" in name).backward()
    parts = model.heads.training_kernels
    own = [model.heads.kernel_head.init_kernels, parts["many"].kernels, parts["pilots"].classes]
    touched = [layer.weight.grad is not None and bool(layer.weight.grad.any()) for layer in own]
    assert touched == [False, kind == "many", kind == "pilot"]
    for update in model.heads.rounds:  # which are shared
        assert update.mask_predictor.weight.grad.any()
        assert update.class_predictor.weight.grad.any()


def test_their_losses_have_a_factor_of_their_own(tiny_cfg):
    keys = {"MASK_PILOTS": 1, "ONE_TO_MANY": 2}
    model, batch = _model(tiny_cfg, **keys).train(), [_input(2)]
    tiny_cfg.MODEL.KNET.LOSS.EXTRA_WEIGHT = 0.25
    lighter = _model(tiny_cfg, **keys).train()
    lighter.load_state_dict(model.state_dict())
    losses = []
    for each in (model, lighter):
        torch.manual_seed(3)
        losses.append(each(batch))
    extra = {*NAMES["MASK_PILOTS"], *NAMES["ONE_TO_MANY"]}
    for name, value in losses[0].items():
        factor = 0.25 if name in extra else 1.0
        torch.testing.assert_close(losses[1][name], factor * value)


def test_under_autocast(tiny_cfg):
    model = _model(tiny_cfg, MASK_PILOTS=2, ONE_TO_MANY=2).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([_input(2)])
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())


@pytest.mark.parametrize("key", ["MASK_PILOTS", "ONE_TO_MANY"])
def test_keys_that_do_not_fit(tiny_cfg, semantic_cfg, key):
    with pytest.raises(ValueError, match=rf"MODEL\.KNET\.{key} is 1.*semantic model"):
        _model(semantic_cfg, **{key: 1})
    tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = ()
    with pytest.raises(ValueError, match=rf"\.{key} is 1.*no thing classes: set it to 0"):
        _model(tiny_cfg, **{key: 1}, NUM_THING_CLASSES=0, NUM_STUFF_CLASSES=3)


@pytest.mark.parametrize("levels", [[], ["res5", "res4", "res3"]])
def test_copies_of_a_pilot_share_pixels_whatever_the_grouping(tiny_cfg, no_noise, levels):
    """Exclusive groups would leave nothing to the second copy of an object."""
    found = {}
    for grouping in ("hard", "exclusive"):
        model = _model(tiny_cfg, MASK_PILOTS=2, GROUPING=grouping, ROUND_LEVELS=levels).train()
        pilots = model.heads.training_kernels["pilots"]
        pilots.register_forward_hook(
            lambda module, inputs, group, g=grouping: found.update({g: group})
        )
        found[f"{grouping} losses"] = model([_input(2)])
    for ours, theirs in zip(found["exclusive"].rounds, found["hard"].rounds):
        torch.testing.assert_close(ours.kernels[0, :2], ours.kernels[0, 2:])
        assert not torch.equal(ours.kernels[0, 0], ours.kernels[0, 1])
        for a, b in zip(ours, theirs):
            assert torch.equal(a, b)
    # the model's own kernels do not share
    own = [found[f"{grouping} losses"]["loss_round1_dice"] for grouping in ("hard", "exclusive")]
    assert own[0] != own[1]


def test_one_to_many_kernels_share_pixels_whatever_the_grouping(tiny_cfg):
    """Exclusive groups would share out what is stuff among them, too."""
    found = []
    for grouping in ("hard", "exclusive"):
        model = _model(tiny_cfg, ONE_TO_MANY=2, GROUPING=grouping).train()
        many = model.heads.training_kernels["many"]
        many.register_forward_hook(lambda module, inputs, group: found.append(group))
        model([_input(2)])
    for ours, theirs in zip(*(group.rounds for group in found)):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
