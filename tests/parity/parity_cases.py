"""Golden cases of instance and panoptic models: a training step and inference of the heads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from parity_report import (
    Report,
    compare_panoptic,
    gradient_norms,
    load_npz,
    load_weights,
    read_case,
)

from knet.modeling.criterion import KNetCriterion, LossWeights
from knet.modeling.kernels import KernelHead, KernelRounds, KNetHeads, UpdateRound
from knet.modeling.matcher import MaskMatcher
from knet.modeling.neck import SemanticFPNNeck
from knet.modeling.outputs import KernelGroup
from knet.modeling.postprocess import InferenceOptions, postprocess
from knet.modeling.predictions import Frame, MaskPredictions
from knet.modeling.targets import BatchTargets, build_targets

__all__ = ["build_heads", "check_case", "load_npz"]

# a mask's probability this near to its threshold ties: summation order decides
_TIE = 1e-5
_CPU = torch.device("cpu")


def build_heads(meta: dict) -> KNetHeads:
    """Heads of the size that a case's `meta.json` gives."""
    dims = meta["dims"]
    width, things = dims["C"], dims["nt"]
    stuff = dims["ns"] if meta["panoptic"] else 0
    return KNetHeads(
        neck=SemanticFPNNeck(
            in_channels=[width] * 4, hidden_dim=width, norm_groups=32, conv_std=0.01
        ),
        kernel_head=KernelHead(
            hidden_dim=width, num_kernels=dims["N"], num_thing_classes=things,
            num_stuff_classes=stuff, norm_groups=32, conv_std=0.01, class_prior=0.01,
        ),
        rounds=KernelRounds(
            UpdateRound(
                dim=width, num_heads=dims["heads"], ffn_dim=dims["ffn"], num_classes=things + stuff
            )
            for _ in range(meta["num_stages"])
        ),
    )  # fmt: skip


def check_case(folder: Path, report: Report) -> None:
    """Run one case and compare every intermediate, loss, gradient and final result."""
    meta, (weights, inputs, train, test) = read_case(folder)
    heads = build_heads(meta)
    load_weights(heads, weights)
    features = [inputs[f"p{level}"] for level in range(2, 6)]
    report = report.within(folder.name)
    _check_training(meta, heads, features, inputs, train, report.within("train"))
    _check_inference(meta, heads, features, test, report.within("test"))


def _check_predictions(initial, rounds, count, golden, report):
    """`count`: of the initial kernels; the release joins those of stuff in inference alone."""
    report.compare("x_feats", initial.features, golden["init.x_feats"])
    report.compare("seg_preds", initial.seg_logits, golden["init.seg_preds"])
    report.compare("init.mask_preds", initial.masks[:, :count], golden["init.mask_preds"])
    kernels = golden["init.proposal_feats"].flatten(2)
    report.compare("init.proposal_feats", initial.kernels[:, :count], kernels)
    for s, r in enumerate(rounds):
        report.compare(f"s{s}.cls_score", r.class_logits, golden[f"s{s}.cls_score"])
        report.compare(f"s{s}.mask_preds", r.masks, golden[f"s{s}.mask_preds"])
        report.compare(f"s{s}.object_feats", r.kernels, golden[f"s{s}.object_feats"].flatten(2))


def _targets(meta: dict, inputs: dict[str, torch.Tensor]) -> list:
    things, (height, width) = meta["dims"]["nt"], meta["dims"]["pad"]
    stuff_ids = torch.arange(things, things + meta["dims"]["ns"] if meta["panoptic"] else things)
    sem_seg = inputs.get("gt.semantic_seg_full_res")
    targets = []
    for b in range(len(meta["img_metas"])):
        masks = inputs[f"gt.img{b}.masks_full_res"]
        targets.append(
            build_targets(
                thing_labels=inputs[f"gt.img{b}.labels"],
                # to the size of the batch, which the semantic labels have already
                thing_masks=F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1])),
                sem_seg=None if sem_seg is None else sem_seg[b].long(),
                stuff_ids=stuff_ids,
                stride=4,
            )
        )
    return targets


def _check_training(meta, heads, features, inputs, golden, report):
    num_things = meta["dims"]["N"]
    criterion = KNetCriterion(
        num_thing_classes=meta["dims"]["nt"],
        num_stuff_classes=meta["dims"]["ns"] if meta["panoptic"] else 0,
        matcher=MaskMatcher(),
        weights=LossWeights(rank=0.1 if meta["panoptic"] else 0.0),
    )
    heads.train()
    initial, rounds = heads(features)
    _check_predictions(initial, rounds, num_things, golden, report)

    targets = _targets(meta, inputs)
    _check_matching(criterion, initial, rounds, targets, num_things, golden, report)
    losses = criterion(initial, rounds, BatchTargets.collate(targets, _CPU))
    for loss, value in losses.items():
        _, part, term = loss.split("_")
        first = part == "init"
        published = f"loss_rpn_{term}" if first else f"s{int(part[5:]) - 1}_loss_{term}"
        report.compare(published, value, meta["losses"][published], "loss")
    expected = sum("loss" in key for key in meta["losses"])
    report.add("number of losses", float(expected != len(losses)), "exact")
    total = sum(losses.values())
    report.compare("loss_total", total, meta["loss_total"], "loss")
    total.backward()
    for name, norm in gradient_norms(heads).items():
        report.compare(f"grad {name}", norm, meta["grads"][name][0], "gradient norm")


def _check_matching(criterion, initial, rounds, targets, num_things, golden, report):
    masks = [initial.masks[:, :num_things], *(r.masks for r in rounds)]
    batch = BatchTargets.collate(targets, _CPU)
    own = KernelGroup("", masks[0], rounds)
    (matches,) = criterion.match([own], batch)
    # the initial masks and the first round share one assignment
    for stage, s in [("init", 0), *((f"s{s}", s) for s in range(len(rounds)))]:
        for b, target in enumerate(targets):
            overlaps = criterion.places.overlaps(
                masks[s][b : b + 1, :num_things], target.thing_masks[None]
            )
            cost = criterion.matcher.mask_cost(overlaps)[0]
            if s > 0:
                logits = rounds[s - 1].class_logits[b : b + 1, :num_things]
                logits = logits[..., : criterion.num_thing_classes]
                cost = cost + criterion.matcher.class_cost(logits, target.thing_labels[None])[0]
            if f"{stage}.cost.img{b}" in golden:
                report.compare(f"{stage}.cost.img{b}", cost, golden[f"{stage}.cost.img{b}"])
            assigned = torch.full((num_things,), -1)
            assigned[matches[s][b].kernels] = torch.from_numpy(matches[s][b].objects)
            key = f"{stage}.assigned_gt_inds.img{b}"
            report.compare(key, assigned, golden[key], "exact")
    _check_targets(criterion, matches, batch, num_things, golden, report)


def _check_targets(criterion, matches, targets, num_things, golden, report):
    """Mask, class and pixel targets that follow from the matches."""
    stages = ["init", *(f"s{s}" for s in range(len(matches)))]
    (rows,) = criterion.rows([matches], targets, num_things)
    for stage, row in zip(stages, rows):
        masks, labels = golden[f"{stage}.mask_targets"], golden[f"{stage}.labels"]
        our_masks = torch.zeros_like(masks)
        our_labels = torch.full_like(labels, criterion.num_classes)
        slot = row.image * (len(labels) // len(targets.things)) + row.kernel
        our_masks[slot] = targets.masks[row.target].float()
        our_labels[slot] = row.label
        report.compare(f"{stage}.mask_targets", our_masks, masks, "exact")
        report.compare(f"{stage}.labels", our_labels, labels, "exact")
    ours = criterion.seg_labels(matches[0], targets)
    report.compare("init.seg_targets", ours, golden["init.seg_targets"], "exact")


def _check_inference(meta, heads, features, golden, report):
    heads.eval()
    with torch.no_grad():
        initial, rounds = heads(features)
    dims, panoptic = meta["dims"], meta["panoptic"]
    _check_predictions(initial, rounds, initial.masks.shape[1], golden, report)
    options = InferenceOptions(
        instance=not panoptic, panoptic=panoptic, semantic=False, top_k=dims["max_per_img"]
    )
    for b, sizes in enumerate(meta["img_metas"]):
        run = partial(
            postprocess,
            MaskPredictions(
                class_scores=rounds[-1].class_logits[b].sigmoid(),
                masks=rounds[-1].masks[b],
                frame=Frame(sizes["batch_input_shape"], sizes["img_shape"][:2]),
                upsample=2,
            ),
            num_thing_classes=dims["nt"],
            num_stuff_classes=dims["ns"] if panoptic else 0,
            output_size=sizes["ori_shape"][:2],
        )
        if panoptic:
            ids, classes = golden[f"pan.img{b}.panoptic_id_map"], dims["nt"] + dims["ns"]
            compare_panoptic(report, f"img{b}", run(options=options).panoptic, classes, ids)
            continue
        instances = run(options=options).instances
        report.compare(f"img{b} scores", instances.scores, golden[f"inst.img{b}.scores"])
        report.compare(f"img{b} labels", instances.labels, golden[f"inst.img{b}.labels"], "exact")
        # a probability within rounding of the threshold may fall on either side
        sure, perhaps = (
            run(options=replace(options, mask_threshold=0.5 + by)).instances.masks
            for by in (_TIE, -_TIE)
        )
        masks = golden[f"inst.img{b}.masks"].bool()
        wrong = int(((masks & ~perhaps) | (~masks & sure)).sum())
        note = f"{masks.numel()} elements, {int((sure != perhaps).sum())} ties aside"
        report.add(f"img{b} masks", float(wrong), "exact", note)
