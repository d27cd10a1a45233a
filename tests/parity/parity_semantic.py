"""Golden cases of semantic models: a training step and inference of the heads."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from parity_report import Report, gradient_norms, load_weights, read_case
from torch import nn

from knet.modeling.grouping import soft_groups
from knet.modeling.kernels import KernelRounds, UpdateRound
from knet.modeling.predictions import Frame, PixelPredictions
from knet.modeling.semantic import PIXEL_DECODERS, FCNDecoder, PixelClassifier, SemanticHeads
from knet.modeling.semantic_criterion import SemanticCriterion

_ROUNDS = 3
# gradients below this share of the largest are rounding noise: softmax cancels some biases
_NO_GRADIENT = 1e-5
# two classes closer than this share of the largest logit tie: summation order decides
_TIE = 1e-5


def build_heads(dims: dict, auxiliary_width: int) -> SemanticHeads:
    """Heads of the size that a case's `meta.json` gives, without dropout, with plain batch norm."""

    def classifier(decoder: nn.Module, channels: int) -> PixelClassifier:
        return PixelClassifier(decoder, channels=channels, num_classes=dims["K"], dropout=0.0)

    decoder = PIXEL_DECODERS[dims["kind"]](
        in_channels=dims["bc"], channels=dims["C"], norm=nn.BatchNorm2d
    )
    auxiliary = FCNDecoder(
        in_channels=[dims["bc"][2]], channels=auxiliary_width, norm=nn.BatchNorm2d,
        num_convs=1, concat_input=False,
    )  # fmt: skip
    return SemanticHeads(
        kernel_head=classifier(decoder, dims["C"]),
        rounds=KernelRounds(
            UpdateRound(
                dim=dims["C"], num_heads=dims["heads"], ffn_dim=dims["ffn"], num_classes=None,
                grouping=soft_groups, updater_dim=dims["U"], xavier=False,
            )
            for _ in range(_ROUNDS)
        ),
        auxiliary=classifier(auxiliary, auxiliary_width),
        auxiliary_index=2,
    )  # fmt: skip


def check_semantic_case(folder: Path, report: Report) -> None:
    """Run one case and compare intermediates, losses, gradients and results."""
    meta, (weights, inputs, train, test) = read_case(folder)
    heads = build_heads(meta["dims"], len(weights["auxiliary_head.convs.0.bn.weight"]))
    load_weights(heads, weights)
    features = [inputs[f"c{level}"] for level in range(2, 6)]
    report = report.within(folder.name)
    # inference first: the training step moves the statistics of the batch norms
    _check_inference(meta, heads, features, test, report.within("test"))
    labels = inputs["gt_semantic_seg"].long()
    _check_training(meta, heads, features, labels, train, report.within("train"))


def _check_predictions(initial, rounds, golden, report):
    report.compare("init.logits", initial.masks, golden["init.logits"])
    report.compare("init.feats", initial.features, golden["init.feats"])
    report.compare("init.seg_kernels", initial.kernels, golden["init.seg_kernels"].flatten(2))
    for s, r in enumerate(rounds):
        report.compare(f"s{s}.logits", r.masks, golden[f"s{s}.logits"])
        report.compare(f"s{s}.object_feats", r.kernels, golden[f"s{s}.object_feats"].flatten(2))


def _check_training(meta, heads, features, labels, golden, report):
    heads.train()
    initial, rounds = heads(features)
    _check_predictions(initial, rounds, golden, report)
    losses = SemanticCriterion()(initial, rounds, labels)
    published = {"init": "decode.loss_ce.s0", "auxiliary": "aux.loss_ce"}
    published.update({f"round{s}": f"decode.loss_ce.s{s}" for s in range(1, _ROUNDS + 1)})
    for loss, value in losses.items():
        key = published[loss.split("_")[1]]
        report.compare(key, value, meta["losses"][key], "loss")
    expected = sum("loss" in key for key in meta["losses"])
    report.add("number of losses", float(expected != len(losses)), "exact")
    total = sum(losses.values())
    report.compare("loss_total", total, meta["loss_total"], "loss")
    total.backward()
    noise = _NO_GRADIENT * max(grad[0] for grad in meta["grads"].values() if grad)
    for name, ours in gradient_norms(heads, semantic=True).items():
        norms = (norm if norm > noise else 0.0 for norm in (ours, meta["grads"][name][0]))
        report.compare(f"grad {name}", *norms, "gradient norm")


def _check_inference(meta, heads, features, golden, report):
    heads.eval()
    with torch.no_grad():
        initial, rounds = heads(features)
    _check_predictions(initial, rounds, golden, report)
    logits, size = rounds[-1].masks, meta["input_size"]
    large = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    report.compare("logits_at_input_size", large, golden["logits_at_input_size"])
    for b, original in enumerate(meta["ori_shapes"]):
        probabilities = PixelPredictions(logits[b], Frame(size, size)).probabilities(original)
        key = f"img{b}.probs_at_original_size"
        report.compare(key, probabilities, golden[key], "half")
        key = f"img{b}.pred_labels_at_original_size"
        decided = _decided(golden["logits_at_input_size"][b], original)
        ours, expected = probabilities.argmax(0)[decided], golden[key][decided]
        report.compare(f"{key}, {int((~decided).sum())} ties aside", ours, expected, "exact")


def _decided(logits, size):
    """(H, W): where the published logits have one clearly largest class."""
    large = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    first, second = large.topk(2, dim=0).values
    return first - second > _TIE * logits.abs().max()
