"""The real code and the golden numbers against the published algorithm written out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from parity_cases import build_heads, load_npz
from parity_semantic import build_heads as build_semantic_heads
from torch import Tensor
from workload import spread

from knet.checkpoint.published_names import import_published, to_published_name
from knet.modeling.criterion import KNetCriterion, LossWeights
from knet.modeling.matcher import MaskMatcher
from knet.modeling.postprocess import InferenceOptions, postprocess
from knet.modeling.predictions import Frame, MaskPredictions, PixelPredictions
from knet.modeling.semantic_criterion import SemanticCriterion
from knet.modeling.targets import BatchTargets, build_targets

from . import reference, reference_training
from .reference import Setup

GOLDEN = Path(__file__).parent / "golden"
THINGS = 4


def close(ours: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Largest difference relative to the largest magnitude."""
    assert ours.shape == expected.shape
    scale = float(expected.detach().abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * max(scale, 1e-3))


def parameters_of(heads) -> dict[str, Tensor]:
    return dict(heads.named_parameters())


def gradients_of(heads, total: Tensor) -> dict[str, Tensor]:
    heads.zero_grad(set_to_none=True)
    total.backward()
    return {n: p.grad.clone() for n, p in heads.named_parameters() if p.grad is not None}


def make_heads(stuff: int):
    dims = {"C": 32, "nt": THINGS, "ns": stuff, "N": 7, "heads": 8, "ffn": 24}
    return build_heads({"dims": dims, "panoptic": stuff > 0, "num_stages": 3})


def make_pyramid(batch: int, height: int, width: int) -> list[Tensor]:
    """Four random levels of a padded input."""
    return [
        torch.randn(batch, 32, height // stride, width // stride, requires_grad=True)
        for stride in (4, 8, 16, 32)
    ]


def make_annotations(objects: int, stuff: int, height: int, width: int) -> dict:
    """Overlapping boxes over stripes of stuff; labels of stuff are THINGS and more."""
    masks = torch.zeros(objects, height, width, dtype=torch.bool)
    for mask in masks:
        y, x = (int(torch.randint(0, n - 9, ())) for n in (height, width))
        mask[y : y + 9 + y % 7, x : x + 9 + x % 5] = True
    stripe = torch.arange(width).expand(height, width) * (stuff + 2) // width
    sem_seg = torch.where(stripe < stuff, stripe + THINGS, 255)
    labels = torch.randint(0, THINGS, (objects,))
    return {"labels": labels, "masks": masks, "sem_seg": sem_seg if stuff else None}


def targets_of(annotations: dict, stuff: int, padded_size: tuple[int, int]):
    """Ours and the reference's."""
    ids = list(range(THINGS, THINGS + stuff))
    ours = build_targets(
        thing_labels=annotations["labels"],
        thing_masks=annotations["masks"],
        sem_seg=annotations["sem_seg"],
        stuff_ids=torch.tensor(ids, dtype=torch.int64),
        stride=4,
    )
    truth = reference_training.ground_truth(
        annotations["labels"], annotations["masks"], annotations["sem_seg"], ids, padded_size
    )
    return ours, truth


@pytest.mark.parametrize(
    "seed, stuff, size, objects",
    [
        (0, 3, (64, 96), (4, 2)),
        (1, 5, (96, 64), (3, 0, 7)),
        (2, 0, (32, 160), (5,)),
        (3, 0, (64, 64), (0, 0)),
    ],
)
def test_training_agrees(seed, stuff, size, objects):
    torch.manual_seed(seed)
    heads, pyramid = make_heads(stuff), make_pyramid(len(objects), *size)
    setup = Setup(THINGS, stuff)
    start, rounds = reference.heads(parameters_of(heads), setup, pyramid)
    initial, outputs = heads(pyramid)
    for name in ("features", "kernels", "masks", "seg_logits"):
        close(getattr(initial, name), getattr(start, name))
    for ours, expected in zip(outputs, rounds):
        for name in ("class_logits", "masks", "kernels"):
            close(getattr(ours, name), getattr(expected, name))

    annotations = [make_annotations(n, stuff, size[0] - 5, size[1] - 14) for n in objects]
    pairs = [targets_of(a, stuff, size) for a in annotations]
    targets = BatchTargets.collate(
        [ours for ours, _ in pairs], torch.device("cpu"), [side // 4 for side in size]
    )
    for b, (ours, truth) in enumerate(pairs):
        masks = targets.masks[targets.firsts[b] : targets.firsts[b + 1]].float()
        assert torch.equal(masks, torch.cat([truth.masks, truth.stuff_masks]))
        assert torch.equal(ours.stuff_labels, truth.stuff_labels)
    criterion = KNetCriterion(
        num_thing_classes=THINGS,
        num_stuff_classes=stuff,
        matcher=MaskMatcher(),
        weights=LossWeights(rank=0.1 if stuff else 0.0),
    )
    losses = criterion(initial, outputs, targets)
    expected = reference_training.losses(
        start, rounds, [truth for _, truth in pairs], THINGS, with_rank=stuff > 0
    )
    assert set(losses) == set(expected)
    for name, value in expected.items():
        close(losses[name], value)

    gradients = gradients_of(heads, sum(losses.values()))
    of_pyramid = [level.grad.clone() for level in pyramid]
    for level in pyramid:
        level.grad = None
    wanted = gradients_of(heads, sum(expected.values()))
    assert set(gradients) == set(wanted)
    largest = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * largest)
    for ours, level in zip(of_pyramid, pyramid):
        close(ours, level.grad)


@pytest.mark.parametrize(
    "seed, stuff, padded_size, image_size, output_size",
    [
        (4, 3, (64, 96), (64, 96), (64, 96)),
        (5, 5, (96, 64), (80, 61), (133, 101)),
        (6, 3, (64, 128), (57, 120), (29, 61)),
    ],
)
@torch.no_grad()
def test_results_agree(seed, stuff, padded_size, image_size, output_size):
    torch.manual_seed(seed)
    heads = make_heads(stuff).eval()
    setup, sizes = Setup(THINGS, stuff), (padded_size, image_size, output_size)
    pyramid = make_pyramid(1, *padded_size)
    spread(heads, pyramid, coverage=0.2)  # masks and scores on both sides of every threshold
    _, rounds = reference.heads(parameters_of(heads), setup, pyramid)
    last = heads(pyramid)[1][-1]
    scores = rounds[-1].class_logits[0].sigmoid()
    result = postprocess(
        MaskPredictions(
            last.class_logits[0].sigmoid(), last.masks[0], Frame(*sizes[:2]), upsample=2
        ),
        num_thing_classes=THINGS,
        num_stuff_classes=stuff,
        output_size=output_size,
        options=InferenceOptions(semantic=False, top_k=15),
    )
    id_map, segments = reference.panoptic(scores, rounds[-1].masks[0], setup, sizes)
    assert len(segments) >= 2 and (id_map == 0).any()
    assert torch.equal(result.panoptic[0], id_map)
    for ours, expected in zip(result.panoptic[1], segments):
        assert (ours.id, ours.label, ours.area) == tuple(
            expected[key] for key in ("id", "label", "area")
        )
        assert ours.score == pytest.approx(expected["score"], rel=1e-5)
    assert len(result.panoptic[1]) == len(segments)

    found = reference.instances(
        scores[:-stuff, :THINGS], rounds[-1].masks[0, :-stuff], sizes, top_k=15
    )
    close(result.instances.scores, found[0])
    assert torch.equal(result.instances.labels, found[1])
    assert torch.equal(result.instances.masks, found[2])


@pytest.mark.parametrize("width, updater", [(32, 32), (32, 16)])
def test_semantic_agrees(width, updater):
    dims = {"kind": "fcn", "K": 5, "C": width, "U": updater, "bc": [16, 16, 24, 32]}
    heads = build_semantic_heads({**dims, "heads": 8, "ffn": 24}, 16)
    features = [torch.randn(2, channels, 9, 12) for channels in dims["bc"]]
    initial, outputs = heads(features)
    setup = Setup(0, dims["K"])
    start, rounds = reference.semantic_rounds(
        parameters_of(heads), setup, initial.features, initial.masks
    )
    for ours, expected in zip(outputs, rounds):
        close(ours.masks, expected.masks)
        close(ours.kernels, expected.kernels)
    labels = torch.randint(0, dims["K"], (2, 36, 48))
    labels[0, :5] = 255
    losses = SemanticCriterion()(initial._replace(auxiliary=None), outputs, labels)
    expected = reference_training.semantic_losses(start, rounds, labels)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        close(losses[name], value)
    names = [n for n, _ in heads.named_parameters() if "auxiliary" not in n]
    chosen = [parameters_of(heads)[n] for n in names]
    gradients, wanted = (
        torch.autograd.grad(sum(x.values()), chosen, retain_graph=True) for x in (losses, expected)
    )
    largest = max(float(g.abs().max()) for g in wanted)
    for ours, gradient in zip(gradients, wanted):
        torch.testing.assert_close(ours, gradient, rtol=1e-5, atol=1e-5 * largest)

    sizes = (36, 48), (33, 41), (50, 47)
    logits = outputs[-1].masks[0].detach()
    ours = PixelPredictions(logits, Frame(*sizes[:2])).probabilities(sizes[2])
    close(ours, reference.semantic(logits, sizes))


@pytest.mark.parametrize("case", ["instance_small", "panoptic_batch1", "panoptic_empty"])
def test_golden_numbers(case):
    folder = GOLDEN / case
    meta = json.loads((folder / "meta.json").read_text())
    dims, is_panoptic = meta["dims"], meta["panoptic"]
    stuff = dims["ns"] if is_panoptic else 0
    parameters = {
        name.removeprefix("heads."): value.clone().requires_grad_()
        for name, value in import_published(load_npz(folder / "weights.npz")).items()
    }
    setup = Setup(dims["nt"], stuff, num_heads=dims["heads"])
    inputs = load_npz(folder / "inputs.npz")
    start, rounds = reference.heads(parameters, setup, [inputs[f"p{i}"] for i in range(2, 6)])
    golden = load_npz(folder / "train.npz")
    close(start.seg_logits, golden["init.seg_preds"], 1e-4)
    for s, r in enumerate(rounds):
        close(r.class_logits, golden[f"s{s}.cls_score"], 1e-4)
        close(r.masks, golden[f"s{s}.mask_preds"], 1e-4)

    sem_seg = inputs.get("gt.semantic_seg_full_res")
    truth = [
        reference_training.ground_truth(
            inputs[f"gt.img{b}.labels"],
            inputs[f"gt.img{b}.masks_full_res"],
            None if sem_seg is None else sem_seg[b],
            range(dims["nt"], dims["nt"] + stuff),
            dims["pad"],
        )
        for b in range(len(meta["img_metas"]))
    ]
    losses = reference_training.losses(start, rounds, truth, dims["nt"], with_rank=is_panoptic)
    for name, value in losses.items():
        _, part, term = name.split("_")
        key = f"loss_rpn_{term}" if part == "init" else f"s{int(part[5:]) - 1}_loss_{term}"
        assert value.item() == pytest.approx(meta["losses"][key], rel=1e-4)
    assert sum(losses.values()).item() == pytest.approx(meta["loss_total"], rel=1e-4)
    sum(losses.values()).backward()
    for name, value in parameters.items():
        norm = 0.0 if value.grad is None else value.grad.norm().item()
        expected = meta["grads"][to_published_name(f"heads.{name}")][0]
        assert norm == pytest.approx(expected, rel=1e-3, abs=1e-5), name

    golden = load_npz(folder / "test.npz")
    for b, image in enumerate(meta["img_metas"]):
        sizes = image["batch_input_shape"], image["img_shape"][:2], image["ori_shape"][:2]
        scores, masks = rounds[-1].class_logits[b].detach().sigmoid(), rounds[-1].masks[b].detach()
        if is_panoptic:
            id_map, segments = reference.panoptic(scores, masks, setup, sizes)
            published = [dims["nt"] + stuff] + [s["label"] + 1000 * (s["id"] - 1) for s in segments]
            expected = golden[f"pan.img{b}.panoptic_id_map"]
            assert torch.equal(torch.tensor(published)[id_map.long()], expected.long())
        else:
            found = reference.instances(scores, masks, sizes, top_k=dims["max_per_img"])
            close(found[0], golden[f"inst.img{b}.scores"], 1e-4)
            assert torch.equal(found[1], golden[f"inst.img{b}.labels"])
            # one pixel of the golden masks has a probability within 3e-7 of the threshold
            kernels = scores.flatten().topk(len(found[0])).indices // dims["nt"]
            probabilities = reference.resize_masks(masks[kernels], *sizes)
            other = found[2] != golden[f"inst.img{b}.masks"]
            assert ((probabilities[other] - 0.5).abs() < 1e-6).all()
