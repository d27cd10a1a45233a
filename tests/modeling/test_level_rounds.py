"""Rounds that gather from levels in turn, repeats of rounds, and both within a model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import nn

from knet.accel import accelerate, accelerate_as_configured
from knet.modeling.build_neck import KNET_NECK_REGISTRY
from knet.modeling.grouping import exclusive_groups
from knet.modeling.kernels import KernelRounds, UpdateRound
from knet.modeling.level_rounds import LevelRound

SIZES = dict(dim=32, num_heads=4, ffn_dim=64, num_classes=5)
OPTIONS = {
    "GROUPING": "exclusive", "ROUND_LEVELS": ["res5", "res3"], "ROUND_REPEATS": 2,
    "NECK": "build_bifpn_neck", "KERNEL_PEAKS": True, "RESIDUAL_MASKS": True, "NUM_ROUNDS": 2,
}  # fmt: skip


@pytest.fixture
def all_cfg(tiny_cfg):
    """A panoptic model with every option at once."""
    for key, value in OPTIONS.items():
        tiny_cfg.MODEL.KNET[key] = value
    return tiny_cfg


@pytest.fixture
def batch():
    """Two training examples, each a square and a lying rectangle on two kinds of stuff."""
    examples = []
    for side in (20, 30):
        masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        masks[0, 4 : 4 + side, 8 : 8 + side], masks[1, 40:55, :side] = True, True
        instances = Instances((64, 64), gt_masks=BitMasks(masks), gt_classes=torch.tensor([0, 2]))
        labels = torch.full((64, 64), 4)
        labels[:, 32:] = 6
        labels[masks[0]], labels[masks[1]] = 0, 2
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        examples.append({"image": image, "instances": instances, "sem_seg": labels})
    return examples


def _inputs(size=(8, 12), level=(2, 3)):
    x, kernels, masks = torch.randn(2, 32, *size), torch.randn(2, 7, 32), torch.randn(2, 7, *size)
    return x, kernels, masks, torch.randn(2, 32, *level)


def test_a_level_round_gathers_from_its_level_and_convolves_the_fused_map():
    update = LevelRound(**SIZES)
    x, kernels, masks, level = _inputs()
    out = update(x, kernels, masks, level)

    # the same round, by an `UpdateRound` whose groups are swapped for literal ones
    small = F.interpolate(masks, size=(2, 3), mode="bilinear", align_corners=False) > 0
    assert 0 < small.float().mean() < 1
    weight, bias = update.level_transform.weight, update.level_transform.bias
    mapped = torch.einsum("dc,bchw->bdhw", weight, level) + bias[:, None, None]
    groups = torch.einsum("bnhw,bchw->bnc", small.float(), mapped)
    plain = UpdateRound(**SIZES)
    state = {n: p for n, p in update.state_dict().items() if "level_transform" not in n}
    plain.load_state_dict(state)  # every other name is the published one
    plain.gather = lambda *inputs: groups
    expected = plain(x, kernels, masks)
    for ours, theirs in zip(out, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert out.masks.shape == masks.shape


def test_gradients_of_a_level_round():
    update = LevelRound(**SIZES)
    inputs = [t.requires_grad_() for t in _inputs()]
    out = update(*inputs)
    (out.class_logits.square().sum()).backward()
    x, kernels, masks, level = inputs
    assert masks.grad is None and x.grad is None  # classes come from what was gathered
    assert level.grad.abs().sum() > 0 and kernels.grad.abs().sum() > 0
    assert update.level_transform.weight.grad.abs().sum() > 0
    assert update.feature_transform.weight.grad is None
    update(*inputs).masks.square().sum().backward()
    assert x.grad.abs().sum() > 0 and masks.grad is None
    assert update.feature_transform.weight.grad.abs().sum() > 0


def test_groups_at_a_level_are_those_of_the_round():
    update = LevelRound(**SIZES, grouping=exclusive_groups)
    x, _, masks, level = _inputs()
    nn.init.eye_(update.level_transform.weight)
    nn.init.zeros_(update.level_transform.bias)
    sums = update.gather(x, masks, level, update.grouping)  # every pixel of the level once
    torch.testing.assert_close(sums.sum(1), level.sum((2, 3)), rtol=1e-4, atol=1e-4)


def test_a_level_round_without_a_level_says_what_lacks():
    with pytest.raises(ValueError, match=r"the neck has to give maps for MODEL\.KNET.ROUND_LEVELS"):
        KernelRounds([LevelRound(**SIZES)])(*_inputs()[:3])


def test_repeats_take_the_levels_in_turn_and_share_weights():
    rounds = KernelRounds([LevelRound(**SIZES), LevelRound(**SIZES)], repeats=2)
    x, kernels, masks, _ = _inputs()
    levels = [torch.randn(2, 32, 8 >> i, 12 >> i) for i in (2, 1, 0)]
    outputs = rounds(x, kernels, masks, levels)
    assert len(outputs) == 4
    for s, level in enumerate([0, 1, 2, 0]):
        expected = rounds[s % 2](x, kernels, masks, levels[level])
        for ours, theirs in zip(outputs[s], expected):
            assert torch.equal(ours, theirs)
        kernels, masks = expected.kernels, expected.masks
    once = KernelRounds(LevelRound(**SIZES) for _ in range(2))
    assert once.state_dict().keys() == rounds.state_dict().keys()


def test_gradients_of_repeats_add_up():
    repeated = KernelRounds([UpdateRound(**SIZES) for _ in range(3)], repeats=2).double()
    unshared = KernelRounds([*copy.deepcopy(repeated), *copy.deepcopy(repeated)])
    inputs, gradients = [t.double() for t in _inputs()[:3]], []
    for rounds in (repeated, unshared):
        outputs = rounds(*inputs)
        assert len(outputs) == 6
        total = sum(r.masks.square().mean() + r.class_logits.square().mean() for r in outputs)
        gradients.append(torch.autograd.grad(total, list(rounds.parameters())))
    shared, single = gradients
    assert len(single) == 2 * len(shared) > 0
    for of_both, first, second in zip(shared, single, single[len(shared) :]):
        assert second.abs().sum() > 0
        torch.testing.assert_close(of_both, first + second)


def _images(count=2):
    return [{"image": torch.randint(0, 256, (3, 96, 64), dtype=torch.uint8)} for _ in range(count)]


def test_the_model_hands_levels_to_its_rounds(all_cfg):
    all_cfg.MODEL.KNET.NECK = "build_semantic_fpn_neck"  # whose levels are easy to name
    model = build_model(all_cfg).eval()
    seen = []
    for update in model.heads.rounds:
        update.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[3]))
    with torch.no_grad():
        initial, rounds, _ = model.trace(_images())
    assert len(rounds) == 4 and [x.shape[-2:] for x in initial.levels] == [(6, 4), (24, 16)]
    assert [x is level for x, level in zip(seen, [*initial.levels] * 2)] == [True] * 4
    assert all(r.masks.shape == rounds[0].masks.shape for r in rounds)


def test_every_parameter_learns_with_all_options_and_every_repeat_has_losses(all_cfg, batch):
    model = build_model(all_cfg).train()
    losses = model(batch)
    assert {name for name in losses if name.endswith("_dice")} == {
        "loss_init_dice", *(f"loss_round{s}_dice" for s in (1, 2, 3, 4))
    }  # fmt: skip
    sum(losses.values()).backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


# bfloat16 is so coarse that random masks, which lie close together, win other pixels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_accelerated_models_give_the_same(all_cfg, dtype):
    model = build_model(all_cfg).eval()
    for update in model.heads.rounds:  # residual masks start without effect
        nn.init.normal_(update.mask_predictor.weight, std=0.1)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model._last_round(images)
        accelerate(model, dtype=dtype)
        found = model._last_round(images)
    assert found.masks.dtype == dtype and found.kernels.dtype == torch.float32
    for ours, theirs in zip(found, expected):
        error = (ours.float() - theirs).abs().mean() / theirs.abs().mean()
        assert error < (1e-4 if dtype == torch.float32 else 0.1)


def test_recomputed_rounds_have_the_same_gradients(all_cfg, batch):
    all_cfg.MODEL.KNET.ACCEL.RECOMPUTE = ("rounds",)
    model = build_model(all_cfg).train()
    recomputing = accelerate_as_configured(copy.deepcopy(model), all_cfg)
    for m in (model, recomputing):
        sum(m(batch).values()).backward()
    for (name, ours), theirs in zip(recomputing.named_parameters(), model.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_a_neck_without_levels_is_refused_by_name(tiny_cfg):
    if "build_neck_without_levels" not in KNET_NECK_REGISTRY:

        class Second(nn.Module):
            def forward(self, features):
                return features[1][:, :16], features[1][:, :16]

        def build_neck_without_levels(cfg, input_shape):
            return Second()

        KNET_NECK_REGISTRY.register(build_neck_without_levels)
    tiny_cfg.MODEL.KNET.NECK = "build_neck_without_levels"
    build_model(tiny_cfg)  # as long as no level is asked for
    tiny_cfg.MODEL.KNET.ROUND_LEVELS = ["res4"]
    with pytest.raises(ValueError, match=r"ROUND_LEVELS is \['res4'\], but .*without_levels does"):
        build_model(tiny_cfg)


@pytest.mark.parametrize("key, value, mend", [
    ("ROUND_LEVELS", ["res2"], r"only be of \['res3', 'res4', 'res5'\]"),
    ("ROUND_LEVELS", ["p9"], "only be of"),
    ("ROUND_LEVELS", ["res5", "res4", "res3", "res5"], "each of 3 rounds .* sees one"),
    ("ROUND_REPEATS", 0, "at least 1"),
    ("NECK_LAYERS", 0, "at least 1"),
    ("GROUPING", "soft", "'hard', 'exclusive'"),
])  # fmt: skip
def test_values_that_cannot_work(tiny_cfg, key, value, mend):
    tiny_cfg.MODEL.KNET[key] = value
    with pytest.raises(ValueError, match=rf"MODEL\.KNET\.{key} is .*{mend}"):
        build_model(tiny_cfg)


def test_semantic_models_have_neither_exclusive_groups_nor_levels(semantic_cfg):
    knet = semantic_cfg.MODEL.KNET
    knet.GROUPING, knet.ROUND_LEVELS = "exclusive", ["res3"]
    with pytest.raises(ValueError, match=r"GROUPING is .*set it to 'hard'; .*leave it empty"):
        build_model(semantic_cfg)
    knet.GROUPING, knet.ROUND_LEVELS, knet.ROUND_REPEATS = "hard", [], 2
    model = build_model(semantic_cfg)
    _, rounds, _ = model.eval().trace(_images(1))
    assert len(rounds) == 2 * knet.NUM_ROUNDS
