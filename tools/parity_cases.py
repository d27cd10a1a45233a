"""Golden cases of instance and panoptic models: a training step and inference of the heads."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from parity_report import Report

from knet.checkpoint.published_names import import_published, to_published_name
from knet.modeling.criterion import KNetCriterion, LossWeights
from knet.modeling.kernels import KernelHead, KernelRounds, KNetHeads, UpdateRound
from knet.modeling.matcher import MaskMatcher
from knet.modeling.neck import SemanticFPNNeck
from knet.modeling.postprocess import InferenceOptions, postprocess
from knet.modeling.predictions import Frame, MaskPredictions
from knet.modeling.targets import BatchTargets, build_targets

# a mask's probability this near to its threshold ties: summation order decides
_TIE = 1e-5
# ours -> published, for round s
_LOSSES = {"cls": "loss_cls", "mask": "loss_mask", "dice": "loss_dice", "rank": "loss_rank"}


def load_npz(path: Path) -> dict[str, torch.Tensor]:
    """Every array of a file as a tensor."""
    with np.load(path) as file:
        return {name: torch.from_numpy(np.array(file[name])) for name in file.files}


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
            hidden_dim=width,
            num_kernels=dims["N"],
            num_thing_classes=things,
            num_stuff_classes=stuff,
            norm_groups=32,
            conv_std=0.01,
            class_prior=0.01,
        ),
        rounds=KernelRounds(
            UpdateRound(
                dim=width,
                num_heads=dims["heads"],
                ffn_dim=dims["ffn"],
                num_classes=things + stuff,
            )
            for _ in range(meta["num_stages"])
        ),
    )


def check_case(folder: Path, report: Report) -> None:
    """Run one case and compare every intermediate, loss, gradient and final result."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    heads = build_heads(meta)
    renamed = import_published(load_npz(folder / "weights.npz"))
    heads.load_state_dict({name.removeprefix("heads."): value for name, value in renamed.items()})
    inputs = load_npz(folder / "inputs.npz")
    features = [inputs[f"p{level}"] for level in range(2, 6)]
    _check_training(
        folder.name, meta, heads, features, inputs, load_npz(folder / "train.npz"), report
    )
    _check_inference(folder.name, meta, heads, features, load_npz(folder / "test.npz"), report)


def _check_predictions(name, initial, rounds, num_things, golden, report, *, joined):
    report.compare(f"{name}/x_feats", initial.features, golden["init.x_feats"])
    report.compare(f"{name}/seg_preds", initial.seg_logits, golden["init.seg_preds"])
    count = initial.masks.shape[1] if joined else num_things
    report.compare(f"{name}/init.mask_preds", initial.masks[:, :count], golden["init.mask_preds"])
    report.compare(
        f"{name}/init.proposal_feats",
        initial.kernels[:, :count],
        golden["init.proposal_feats"].flatten(2),
    )
    for s, r in enumerate(rounds):
        report.compare(f"{name}/s{s}.cls_score", r.class_logits, golden[f"s{s}.cls_score"])
        report.compare(f"{name}/s{s}.mask_preds", r.masks, golden[f"s{s}.mask_preds"])
        report.compare(
            f"{name}/s{s}.object_feats", r.kernels, golden[f"s{s}.object_feats"].flatten(2)
        )


def _targets(meta: dict, inputs: dict[str, torch.Tensor]) -> list:
    things = meta["dims"]["nt"]
    stuff_ids = torch.arange(things, things + meta["dims"]["ns"] if meta["panoptic"] else things)
    sem_seg = inputs.get("gt.semantic_seg_full_res")
    height, width = (side // 4 for side in meta["dims"]["pad"])
    targets = [
        build_targets(
            thing_labels=inputs[f"gt.img{b}.labels"],
            thing_masks=inputs[f"gt.img{b}.masks_full_res"],
            sem_seg=None if sem_seg is None else sem_seg[b].long(),
            stuff_ids=stuff_ids,
            stride=4,
        )
        for b in range(len(meta["img_metas"]))
    ]
    return [
        t._replace(
            masks=F.pad(t.masks, (0, width - t.masks.shape[2], 0, height - t.masks.shape[1]))
        )
        for t in targets
    ]


def _check_training(case, meta, heads, features, inputs, golden, report):
    name = f"{case}/train"
    num_things = meta["dims"]["N"]
    criterion = KNetCriterion(
        num_thing_classes=meta["dims"]["nt"],
        num_stuff_classes=meta["dims"]["ns"] if meta["panoptic"] else 0,
        matcher=MaskMatcher(),
        weights=LossWeights(rank=0.1 if meta["panoptic"] else 0.0),
    )
    heads.train()
    initial, rounds = heads(features)
    _check_predictions(name, initial, rounds, num_things, golden, report, joined=False)

    targets = _targets(meta, inputs)
    _check_matching(name, criterion, initial, rounds, targets, num_things, golden, report)
    losses = criterion(initial, rounds, BatchTargets.collate(targets, torch.device("cpu")))
    for loss, value in losses.items():
        _, part, term = loss.split("_")
        published = (
            f"loss_rpn_{term}" if part == "init" else f"s{int(part[5:]) - 1}_{_LOSSES[term]}"
        )
        report.compare(f"{name}/{published}", value, meta["losses"][published], "loss")
    expected = sum(1 for key in meta["losses"] if "loss" in key)
    report.add(f"{name}/number of losses", float(expected != len(losses)), "exact")
    total = sum(losses.values())
    report.compare(f"{name}/loss_total", total, meta["loss_total"], "loss")

    total.backward()
    for parameter, value in heads.named_parameters():
        published = to_published_name(f"heads.{parameter}")
        norm = 0.0 if value.grad is None else value.grad.norm()
        report.compare(
            f"{name}/grad {published}", norm, meta["grads"][published][0], "gradient norm"
        )


def _check_matching(name, criterion, initial, rounds, targets, num_things, golden, report):
    masks = [initial.masks[:, :num_things], *(r.masks for r in rounds)]
    batch = BatchTargets.collate(targets, torch.device("cpu"))
    matches = criterion.match(masks, rounds, batch)
    # the initial masks and the first round share one assignment
    for stage, s in [("init", 0), *((f"s{s}", s) for s in range(len(rounds)))]:
        for b, target in enumerate(targets):
            logits = None if s == 0 else rounds[s - 1].class_logits[b, :num_things]
            if logits is not None:
                logits = logits[:, : criterion.num_thing_classes]
            overlaps = criterion.places.overlaps(
                masks[s][b : b + 1, :num_things], target.thing_masks[None]
            )
            cost = criterion.matcher.mask_cost(overlaps)[0]
            if logits is not None:
                classes = criterion.matcher.class_cost(logits[None], target.thing_labels[None])
                cost = cost + classes[0]
            key = f"{stage}.cost.img{b}"
            if key in golden:
                report.compare(f"{name}/{key}", cost, golden[key])
            assigned = torch.full((num_things,), -1)
            assigned[matches[s][b].kernels] = torch.from_numpy(matches[s][b].objects)
            key = f"{stage}.assigned_gt_inds.img{b}"
            report.compare(f"{name}/{key}", assigned, golden[key], "exact")
    _check_targets(name, criterion, matches, batch, num_things, golden, report)


def _check_targets(name, criterion, matches, targets, num_things, golden, report):
    """Mask, class and pixel targets that follow from the matches."""
    stages = ["init", *(f"s{s}" for s in range(len(matches)))]
    for stage, row in zip(stages, criterion.rows(matches, targets, num_things)):
        masks, labels = golden[f"{stage}.mask_targets"], golden[f"{stage}.labels"]
        our_masks = torch.zeros_like(masks)
        our_labels = torch.full_like(labels, criterion.num_classes)
        slot = row.image * (len(labels) // len(targets.things)) + row.kernel
        our_masks[slot] = targets.masks[row.target].float()
        our_labels[slot] = row.label
        report.compare(f"{name}/{stage}.mask_targets", our_masks, masks, "exact")
        report.compare(f"{name}/{stage}.labels", our_labels, labels, "exact")
    ours = criterion.seg_labels(matches[0], targets)
    report.compare(f"{name}/init.seg_targets", ours, golden["init.seg_targets"], "exact")


def _check_inference(case, meta, heads, features, golden, report):
    name = f"{case}/test"
    heads.eval()
    with torch.no_grad():
        initial, rounds = heads(features)
    dims, panoptic = meta["dims"], meta["panoptic"]
    _check_predictions(name, initial, rounds, dims["N"], golden, report, joined=True)
    for b, sizes in enumerate(meta["img_metas"]):
        predictions = MaskPredictions(
            class_scores=rounds[-1].class_logits[b].sigmoid(),
            masks=rounds[-1].masks[b],
            frame=Frame(sizes["batch_input_shape"], sizes["img_shape"][:2]),
            upsample=2,
        )
        options = InferenceOptions(
            instance=not panoptic, panoptic=panoptic, semantic=False, top_k=dims["max_per_img"]
        )
        run = partial(
            postprocess,
            predictions,
            num_thing_classes=dims["nt"],
            num_stuff_classes=dims["ns"] if panoptic else 0,
            output_size=sizes["ori_shape"][:2],
        )
        result = run(options=options)
        if panoptic:
            compare_panoptic(
                f"{name}/img{b}",
                result.panoptic,
                dims["nt"] + dims["ns"],
                golden[f"pan.img{b}.panoptic_id_map"],
                report,
            )
        else:
            instances = result.instances
            report.compare(f"{name}/img{b} scores", instances.scores, golden[f"inst.img{b}.scores"])
            labels = golden[f"inst.img{b}.labels"]
            report.compare(f"{name}/img{b} labels", instances.labels, labels, "exact")
            # a probability within rounding of the threshold may fall on either side
            sure, perhaps = (
                run(options=replace(options, mask_threshold=0.5 + by)).instances.masks
                for by in (_TIE, -_TIE)
            )
            masks = golden[f"inst.img{b}.masks"].bool()
            wrong = int(((masks & ~perhaps) | (~masks & sure)).sum())
            ties = int((sure != perhaps).sum())
            note = f"{masks.numel()} elements, {ties} ties aside"
            report.add(f"{name}/img{b} masks", float(wrong), "exact", note)


def compare_panoptic(
    name: str, ours: tuple, num_classes: int, golden: torch.Tensor, report: Report
) -> None:
    """Compare an id map with the published one, whose ids are label + 1000 * running index."""
    id_map, segments = ours
    lookup = [num_classes] + [s.label + 1000 * (s.id - 1) for s in segments]
    published = torch.tensor(lookup, dtype=torch.int32)[id_map.long()]
    report.compare(f"{name} panoptic id map", published, golden, "exact")
