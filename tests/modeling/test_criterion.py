"""The criterion where images hold many objects, more than kernels, or none."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from knet.accel.streamed_losses import StreamedPixels
from knet.modeling.criterion import KNetCriterion, LossWeights, SemanticCriterion, _paint
from knet.modeling.kernels import InitialKernels, RoundOutput
from knet.modeling.losses import AllPixels, SampledPoints
from knet.modeling.matcher import MaskMatcher
from knet.modeling.targets import BatchTargets, ImageTargets

ROUNDS = 3


def test_the_highest_value_of_an_image_owns_a_pixel():
    masks = torch.tensor([[[1, 0.25, 0, 0]], [[0, 0.5, 0, 0]], [[1, 1, 1, 0]], [[0, 0, 0.5, 1]]])
    images = torch.tensor([0, 0, 1, 1])
    painted = _paint(masks, torch.tensor([4, 9, 7, 1]), images, batch=3)
    assert painted.tolist() == [[[4, 9, -1, -1]], [[7, 7, 7, 1]], [[-1] * 4]]
    assert _paint(masks[:0], images[:0], images[:0], batch=1).tolist() == [[[-1] * 4]]


def _criterion(things, stuff, rank=0.1):
    return KNetCriterion(
        num_thing_classes=things,
        num_stuff_classes=stuff,
        matcher=MaskMatcher(),
        weights=LossWeights(rank=rank),
    )


def _predictions(batch, kernels, things, stuff, size):
    def leaf(*shape):
        return torch.randn(*shape).requires_grad_()

    masks = leaf(batch, kernels + stuff, *size)
    seg = leaf(batch, things + stuff, *size)
    initial = InitialKernels(torch.zeros(0), torch.zeros(0), masks, seg)
    rounds = [
        RoundOutput(
            leaf(batch, kernels + stuff, things + stuff),
            leaf(batch, kernels + stuff, *size),
            torch.zeros(0),
        )
        for _ in range(ROUNDS)
    ]
    return initial, rounds


def _targets(objects, things, stuff, size):
    """Objects are bands of rows, stuff class 0 lies below them."""
    masks = torch.zeros(objects + min(stuff, 1), *size, dtype=torch.float16)
    for i in range(objects):
        masks[i, i % size[0], i % 7 :] = 1
    masks[objects:] = 1
    return ImageTargets(
        thing_labels=torch.arange(objects) % max(things, 1),
        stuff_labels=torch.arange(min(stuff, 1)),
        masks=masks,
    )


def _batch(*images):
    return BatchTargets.collate(images, torch.device("cpu"))


def test_a_random_subset_trains_where_objects_exceed_kernels():
    criterion = _criterion(2, 1)
    initial, rounds = _predictions(2, 3, 2, 1, (8, 8))
    targets = _batch(_targets(10, 2, 1, (16, 16)), _targets(2, 2, 1, (16, 16)))
    masks = [initial.masks[:, :3], *(r.masks for r in rounds)]
    seen = set()
    for _ in range(12):
        matches = criterion.match(masks, rounds, targets)
        assert len(matches) == ROUNDS
        # one subset a step: all rounds train the same objects
        chosen = {tuple(sorted(of_round[0].objects.tolist())) for of_round in matches}
        assert len(chosen) == 1 and len(next(iter(chosen))) == 3
        seen |= chosen
        assert sorted(matches[0][1].objects.tolist()) == [0, 1]
    assert len(seen) > 1


def test_pixels_of_surplus_objects_keep_their_class():
    criterion = _criterion(2, 1)
    initial, rounds = _predictions(1, 3, 2, 1, (8, 8))
    targets = _batch(_targets(10, 2, 1, (16, 16)))
    masks = [initial.masks[:, :3], *(r.masks for r in rounds)]
    matches = criterion.match(masks, rounds, targets)
    labels = criterion.seg_labels(matches[0], targets)[0]
    for row in range(10):
        assert labels[row, row % 7 :].tolist() == [row % 2] * (16 - row % 7)
    assert (labels[10:] == 2).all()


@pytest.mark.parametrize(("kernels", "things", "stuff"), [(4, 2, 0), (0, 0, 3), (4, 2, 3)])
@pytest.mark.parametrize("objects", [0, 2])
@pytest.mark.parametrize("places", [AllPixels, StreamedPixels, partial(SampledPoints, 40)])
def test_every_loss_is_there_and_reaches_every_prediction(kernels, things, stuff, objects, places):
    initial, rounds = _predictions(2, kernels, things, stuff, (8, 8))
    targets = _batch(
        _targets(objects if things else 0, things, stuff, (16, 16)), _targets(0, 0, 0, (16, 16))
    )
    criterion = _criterion(things, stuff)
    criterion.places = places()
    losses = criterion(initial, rounds, targets)
    names = ["init_mask", "init_dice", "init_rank", "init_seg"]
    names += [f"round{s}_{t}" for s in (1, 2, 3) for t in ("mask", "dice", "rank", "cls")]
    assert sorted(losses) == sorted(f"loss_{name}" for name in names)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    for leaf in [initial.masks, initial.seg_logits, *(t for r in rounds for t in r[:2])]:
        assert leaf.grad is not None and leaf.grad.isfinite().all()


_MEMORY = """
import json, resource, torch
from knet.accel.streamed_losses import StreamedPixels
from tests.modeling.test_criterion import _batch, _criterion, _predictions, _targets
torch.manual_seed(0)
initial, rounds = _predictions(2, 300, 1, 0, (128, 128))
targets = _batch(*(_targets(375, 1, 0, (256, 256)) for _ in range(2)))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
criterion = _criterion(1, 0, rank=0.0)
criterion.places = StreamedPixels()
losses = criterion(initial, rounds, targets)
sum(losses.values()).backward()
print(json.dumps({"grown": peak() - before, "dense": 2 * 300 * 256 * 256 * 4 / 2**30}))
"""


@pytest.mark.slow
def test_375_objects_cost_little_memory():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MEMORY], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    # autograd over whole enlarged masks would keep some twelve maps of this size for each stage
    assert result["grown"] < 6 * result["dense"], result


def outputs(size=(2, 3, 4, 6), rounds=2, auxiliary=True):
    """Initial kernels and rounds with random logits that ask for gradients."""

    def logits():
        return torch.randn(size, requires_grad=True)

    masks = logits()
    initial = InitialKernels(None, None, masks, masks, logits() if auxiliary else None)
    return initial, [RoundOutput(None, logits(), None) for _ in range(rounds)]


def test_ignored_pixels_count_in_the_divisor():
    initial, rounds = outputs(auxiliary=False)
    labels = torch.randint(0, 3, (2, 4, 6))
    labels[0, :2] = 255
    losses = SemanticCriterion(weight=2.0)(initial, rounds, labels)
    log_p = initial.masks.log_softmax(1)
    total = sum(
        -log_p[b, labels[b, y, x], y, x]
        for b in range(2) for y in range(4) for x in range(6) if labels[b, y, x] != 255
    )  # fmt: skip
    torch.testing.assert_close(losses["loss_init_seg"], 2 * total / (2 * 4 * 6))


def test_names_weights_and_enlargement():
    initial, rounds = outputs()
    labels = torch.randint(0, 3, (2, 8, 12))
    losses = SemanticCriterion(weight=0.5, auxiliary_weight=0.3)(initial, rounds, labels)
    logits = {
        "loss_init_seg": (0.5, initial.masks),
        "loss_round1_seg": (0.5, rounds[0].masks),
        "loss_round2_seg": (0.5, rounds[1].masks),
        "loss_auxiliary_seg": (0.3, initial.auxiliary),
    }
    assert set(losses) == set(logits)
    for name, (weight, small) in logits.items():
        large = F.interpolate(small, size=(8, 12), mode="bilinear")
        torch.testing.assert_close(losses[name], weight * F.cross_entropy(large, labels))
    assert "loss_auxiliary_seg" not in SemanticCriterion()(*outputs(auxiliary=False), labels)


def test_nothing_but_ignored_pixels():
    initial, rounds = outputs()
    labels = torch.full((2, 4, 6), 255)
    losses = SemanticCriterion()(initial, rounds, labels)
    assert all(v.item() == 0 for v in losses.values())
    sum(losses.values()).backward()
    for logits in (initial.masks, initial.auxiliary, *(r.masks for r in rounds)):
        assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_taken_in_float32(dtype):
    logits = (500 * torch.randn(1, 3, 4, 6)).to(dtype)
    initial = InitialKernels(None, None, logits, logits, None)
    labels = torch.randint(0, 3, (1, 4, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SemanticCriterion()(initial, [], labels)["loss_init_seg"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels))
