"""The criterion where images hold many objects, more than kernels, or none."""

import resource
from functools import partial

import pytest
import torch

from knet.accel.streamed_losses import StreamedPixels
from knet.modeling.criterion import KNetCriterion, LossWeights
from knet.modeling.losses import AllPixels, SampledPoints, class_focal_sum
from knet.modeling.matcher import MaskMatcher
from knet.modeling.outputs import InitialKernels, KernelGroup, RoundOutput
from knet.modeling.targets import BatchTargets, ImageTargets, Rows

from ..processes import call

ROUNDS = 3


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
    own = KernelGroup("", initial.masks[:, :3], rounds)
    seen = set()
    for _ in range(12):
        matches = criterion.match([own], targets)[0]
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
    own = KernelGroup("", initial.masks[:, :3], rounds)
    matches = criterion.match([own], targets)[0]
    labels = criterion.seg_labels(matches[0], targets)[0]
    for row in range(10):
        assert labels[row, row % 7 :].tolist() == [row % 2] * (16 - row % 7)
    assert (labels[10:] == 2).all()


def test_masks_and_truth_of_the_last_round_belong_to_each_other():
    criterion = _criterion(2, 1)
    initial, rounds = _predictions(2, 4, 2, 1, (16, 16))
    targets = _batch(_targets(2, 2, 1, (16, 16)), _targets(1, 2, 0, (16, 16)))
    with torch.no_grad():  # kernels 3 and 1 of the first image, 2 of the second, and stuff
        for output in [initial, *rounds]:
            output.masks.copy_(-9 * torch.ones_like(output.masks))
            for image, kernel, truth in ((0, 3, 0), (0, 1, 1), (0, 4, 2), (1, 2, 3)):
                output.masks[image, kernel] += 18 * targets.masks[truth]
        rounds[-1].masks.mul_(2)
    logits, truth = criterion.matched_masks(initial, rounds, targets)
    assert torch.equal(truth.sort(0)[0], targets.masks.float().sort(0)[0])
    assert torch.equal(logits, 18 * (2 * truth - 1)) and logits.dtype == truth.dtype
    logits.sum().backward()
    assert rounds[-1].masks.grad.flatten(2).any(2).tolist() == [
        [False, True, False, True, True], [False, False, True, False, False]
    ]  # fmt: skip
    logits, truth = criterion.matched_masks(
        initial, rounds, _batch(*[_targets(0, 2, 0, (32, 32))] * 2)
    )
    assert logits.shape == truth.shape == (0, 32, 32)


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


def _group(name, batch, kernels, things, stuff, size, repeats=1, rows=None):
    initial, rounds = _predictions(batch, kernels, things, stuff, size)
    return KernelGroup(name, None if rows else initial.masks, rounds, repeats, rows)


def test_each_object_is_matched_several_times():
    criterion = _criterion(2, 1)
    initial, rounds = _predictions(3, 4, 2, 1, (8, 8))
    own = KernelGroup("", initial.masks[:, :4], rounds)
    many = _group("many", 3, 10, 2, 1, (8, 8), repeats=3)
    targets = _batch(*(_targets(n, 2, 1, (16, 16)) for n in (2, 4, 0)))
    alone = criterion.match([own], targets)
    (found, others) = criterion.match([own, many], targets)
    for of_round, same, of_many in zip(found, alone[0], others):
        for match, expected in zip(of_round, same):
            assert match.objects.tolist() == expected.objects.tolist()
            assert match.kernels.tolist() == expected.kernels.tolist()
        # three kernels for each of 2 objects; for 4 objects 10 kernels are two for each
        assert [sorted(m.objects.tolist()) for m in of_many] == [
            [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3], []
        ]  # fmt: skip
        assert all(len(set(m.kernels)) == len(m.kernels) for m in of_many)
    # the cheapest of all choices: every kernel of an object is better than an idle one
    cost = criterion.matcher.mask_cost(
        criterion.places.overlaps(many.masks[:1], targets.masks[None, :2])
    )[0]
    of_first = others[0][0]
    chosen = cost[of_first.kernels, of_first.objects]
    idle = [k for k in range(10) if k not in of_first.kernels]
    for k, value in zip(of_first.objects, chosen):
        assert (cost[idle, k] >= value).all()


def test_surplus_objects_are_the_same_for_all_kernels():
    criterion = _criterion(2, 0)
    initial, rounds = _predictions(1, 3, 2, 0, (8, 8))
    many = _group("many", 1, 7, 2, 0, (8, 8), repeats=2)
    targets = _batch(_targets(10, 2, 0, (16, 16)))
    own, others = criterion.match([KernelGroup("", initial.masks, rounds), many], targets)
    for of_round in others:
        assert sorted(of_round[0].objects) == sorted(2 * own[0][0].objects.tolist())


@pytest.mark.parametrize("places", [AllPixels, StreamedPixels])
def test_kernels_of_training_in_a_batch_and_one_by_one(places, monkeypatch):
    """With sums in place of means the losses of a batch are those of its images together."""
    calls = []

    def ones(counts):
        calls.append(counts)
        return torch.ones_like(counts)

    monkeypatch.setattr("knet.modeling.criterion.world_mean_divisors", ones)
    criterion = _criterion(2, 1)
    criterion.places = places()
    initial, rounds = _predictions(3, 4, 2, 1, (8, 8))
    many = _group("many", 3, 6, 2, 1, (8, 8), repeats=2)
    # two pilots of the first image, of its objects 1 and 0; none of the second; one of the third
    table = torch.tensor([[0, 0, 2], [0, 1, 0], [1, 0, 4], [1, 0, 0]])
    pilots = _group("pilot", 3, 2, 2, 1, (8, 8), rows=Rows(*table))
    images = [_targets(n, 2, 1, (16, 16)) for n in (2, 0, 1)]

    def of(b, part):
        rounds = [RoundOutput(*(t[b] for t in r[:2]), r[2]) for r in part.rounds]
        rows = part.rows
        if rows is not None:
            here = rows.image == b.start
            first = [0, 3, 4][b.start]
            rows = Rows(0 * rows.image[here], rows.kernel[here], rows.target[here] - first,
                        rows.label[here])  # fmt: skip
        masks = None if part.masks is None else part.masks[b]
        return part._replace(masks=masks, rounds=rounds, rows=rows)

    own = KernelGroup("", initial.masks, rounds)
    whole = criterion(initial._replace(groups=[many, pilots]), rounds, _batch(*images))
    assert len(calls) == 1  # one exchange between processes
    parts = []
    for b, image in enumerate(images):
        b = slice(b, b + 1)
        start = initial._replace(
            masks=initial.masks[b], seg_logits=initial.seg_logits[b],
            groups=[of(b, many), of(b, pilots)],
        )  # fmt: skip
        parts.append(criterion(start, of(b, own).rounds, _batch(image)))
    assert {"loss_many_init_dice", "loss_pilot_round3_cls"} < set(whole)
    for name, value in whole.items():
        torch.testing.assert_close(value, sum(p[name] for p in parts), rtol=1e-4, atol=1e-4)
    counts = calls[0].tolist()
    # places, objects, stages of own kernels (with stuff in rounds), of many, of pilots, pixels
    assert counts[:2] == [3 * 256, 3] and counts[2:6] == [3, 6, 6, 6]
    assert counts[6:10] == [6] * 4 and counts[10:13] == [3] * 3 and len(counts) == 14


def test_kernels_that_fill_up_are_not_trained():
    criterion = _criterion(2, 1)
    initial, rounds = _predictions(1, 4, 2, 1, (8, 8))
    pilots = _group("pilot", 1, 3, 2, 1, (8, 8), rows=Rows(*torch.tensor([[0], [1], [0], [1]])))
    targets = _batch(_targets(1, 2, 1, (16, 16)))
    losses = criterion(initial._replace(groups=[pilots]), rounds, targets)
    sum(v for k, v in losses.items() if "pilot" in k).backward()
    for output in pilots.rounds:
        for tensor in (output.masks, output.class_logits):
            assert tensor.grad[0, 1].any()
            assert not tensor.grad[0, [0, 2]].any()
        assert not output.class_logits.grad[..., 2].any()  # a thing is not asked about stuff
    logits = pilots.rounds[0].class_logits[0, 1]
    expected = class_focal_sum(logits[:2], torch.tensor(1), torch.ones(2))
    torch.testing.assert_close(losses["loss_pilot_round1_cls"], 2 * expected)


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _growth():
    """Bytes that the losses of 375 objects take at their peak."""
    torch.manual_seed(0)
    initial, rounds = _predictions(1, 300, 1, 0, (128, 128))
    targets = _batch(_targets(375, 1, 0, (256, 256)))
    before = _peak()
    criterion = _criterion(1, 0, rank=0.0)
    criterion.places = StreamedPixels()
    losses = criterion(initial, rounds[:2], targets)
    sum(losses.values()).backward()
    return _peak() - before


@pytest.mark.slow
def test_375_objects_cost_little_memory():
    dense = 300 * 256 * 256 * 4
    # autograd over whole enlarged masks would keep some twelve maps of this size for each stage
    assert call(_growth) < 5 * dense
