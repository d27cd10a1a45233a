"""Golden numbers of single parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from parity_report import Report, compare_panoptic, gradient_norms, load_npz, load_weights
from torch import Tensor, nn

from knet.modeling.instances import InstanceSelection
from knet.modeling.kernels import KernelUpdater, UpdateRound
from knet.modeling.losses import AllPixels, class_focal_sum, owner_sum, pixel_focal_sum
from knet.modeling.matcher import MaskMatcher
from knet.modeling.neck import SemanticFPNNeck
from knet.modeling.panoptic import PanopticFusion, kernel_scores
from knet.modeling.positions import SinePositionEncoding
from knet.modeling.resize import MaskResizer

Arrays = Mapping[str, Tensor]
# names of parts: published, ours
_ROUND = ("roi_head.mask_head.0.", "heads.rounds.0.")
_UPDATER = ("roi_head.mask_head.0.kernel_update_conv.", "heads.rounds.0.updater.")
_NECK = ("rpn_head.localization_fpn.", "heads.neck.")


def check_modules(folder: Path, report: Report) -> None:
    """Run every part whose file the folder holds; an unknown file is an error."""
    for path in sorted(folder.glob("*.npz")):
        if path.stem not in _CHECKS:
            raise ValueError(f"{path}: no check for this part")
        meta = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        _CHECKS[path.stem](load_npz(path), meta, report.within(f"modules/{path.stem}"))


def _load(module: nn.Module, arrays: Arrays, names: tuple[str, str]) -> None:
    weights = {names[0] + k[2:]: v for k, v in arrays.items() if k.startswith("w.")}
    load_weights(module, weights, names[1])


def _gradients(report, module, arrays, prefix, names):
    for published, norm in gradient_norms(module, names[1]).items():
        key = published.removeprefix(names[0])
        report.compare(f"grad {key}", norm, arrays[prefix + key], "gradient norm")


def _position_encoding(arrays, meta, report):
    for key, golden in arrays.items():
        channels, height, width = golden.shape
        ours = SinePositionEncoding(channels)(torch.zeros(1, 1, height, width))
        report.compare(key, ours, golden)


def _semantic_fpn(arrays, meta, report):
    width = arrays["p2"].shape[1]
    neck = SemanticFPNNeck(in_channels=[width] * 4, hidden_dim=width, norm_groups=32, conv_std=0.01)
    _load(neck, arrays, _NECK)
    features = {f"p{level}": arrays[f"p{level}"].clone().requires_grad_() for level in range(2, 6)}
    out = neck(list(features.values()))
    for i in range(2):
        report.compare(f"out{i}", out[i], arrays[f"out{i}"])
    (out[0].square().sum() + 0.5 * out[1].sum()).backward()
    _gradients(report, neck, arrays, "gradnorm.", _NECK)
    for level, feature in features.items():
        golden = arrays[f"gradnorm.{level}"]
        report.compare(f"grad {level}", feature.grad.norm(), golden, "gradient norm")


def _fpn_neck(arrays, meta, report):
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import FPN, Backbone

    features = {f"c{level}": arrays[f"c{level}"] for level in range(2, 6)}

    class Given(Backbone):
        def output_shape(self):
            return {
                c: ShapeSpec(channels=x.shape[1], stride=2 ** int(c[1]))
                for c, x in features.items()
            }

        def forward(self, x):
            return features

    fpn = FPN(Given(), list(features), arrays["p2"].shape[1])
    _load(fpn, arrays, ("neck.", "backbone."))
    for key, ours in fpn(None).items():
        report.compare(key, ours, arrays[key])


def _kernel_updater(arrays, meta, report):
    for size in ("k1", "k3"):
        case = _under(arrays, size)
        updater = KernelUpdater(len(arrays["w.fc_layer.weight"]))
        _load(updater, arrays, _UPDATER)
        groups = case["update_feature_in"].clone().requires_grad_()
        kernels = case["input_feature_in"].clone().requires_grad_()
        # a larger kernel shares its group feature among its positions
        out = updater(groups[:, :, None], kernels).flatten(0, 1)
        report.compare(f"{size}.out", out, case["out"])
        out.backward(case["grad_out"])
        report.compare(f"{size}.grad groups", groups.grad, case["grad_update_feature"])
        report.compare(f"{size}.grad kernels", kernels.grad, case["grad_input_feature"])
        _gradients(report.within(size), updater, case, "gradnorm.", _UPDATER)


def _kernel_update_head(arrays, meta, report):
    x = arrays["x"].clone().requires_grad_()
    kernels = arrays["proposal_feats"].flatten(2).requires_grad_()
    masks = arrays["mask_preds_in"].clone().requires_grad_()
    update = UpdateRound(
        dim=x.shape[1],
        num_heads=4,
        ffn_dim=len(arrays["w.ffn.layers.0.0.weight"]),
        num_classes=len(arrays["w.fc_cls.weight"]),
    )
    _load(update, arrays, _ROUND)
    out = update(x, kernels, masks)
    report.compare("cls_score", out.class_logits, arrays["cls_score"])
    report.compare("mask_preds", out.masks, arrays["mask_preds_out"])
    report.compare("object_feats", out.kernels, arrays["object_feats_out"].flatten(2))
    torch.autograd.backward(
        [out.class_logits, out.masks, out.kernels],
        [arrays["grad_cls"], arrays["grad_mask"], arrays["grad_obj"].flatten(2)],
    )
    report.compare("grad x", x.grad, arrays["grad_x"])
    report.compare("grad kernels", kernels.grad, arrays["grad_proposal"].flatten(2))
    golden = arrays["grad_mask_in_is_none"]
    report.compare("mask gets no gradient", masks.grad is None, golden, "exact")
    _gradients(report, update, arrays, "gradnorm.", _ROUND)


def _under(arrays: Arrays, part: str) -> dict[str, Tensor]:
    start = f"{part}."
    return {key.removeprefix(start): x for key, x in arrays.items() if key.startswith(start)}


def _assigner(arrays, meta, report):
    for t in sorted({key.split(".")[0] for key in arrays}):
        case = _under(arrays, t)
        logits = case["cls_logits"] if case["use_cls"] else None
        labels, masks = case["gt_labels"], case["gt_masks"].float()
        overlaps = AllPixels().overlaps(case["mask_logits"][None], masks[None])

        def cost_of(matcher, logits=logits, labels=labels, overlaps=overlaps):
            cost = matcher.mask_cost(overlaps)[0]
            if logits is None:
                return cost
            return cost + matcher.class_cost(logits[None], labels[None])[0]

        cost = cost_of(MaskMatcher())
        if "cost_total" in case:
            report.compare(f"{t}.cost_total", cost, case["cost_total"])
            weights = {"mask": (0.0, 1.0, 0.0), "dice": (0.0, 0.0, 4.0), "cls": (2.0, 0.0, 0.0)}
            for term, (w_cls, w_mask, w_dice) in weights.items():
                if term != "cls" or logits is not None:
                    only = MaskMatcher(class_weight=w_cls, mask_weight=w_mask, dice_weight=w_dice)
                    report.compare(f"{t}.cost_{term}", cost_of(only), case[f"cost_{term}"])
        (match,) = MaskMatcher().match([cost.numpy()])
        assigned = torch.full((len(case["mask_logits"]),), -1)
        assigned[match.kernels] = torch.from_numpy(match.objects)
        report.compare(f"{t}.assigned", assigned, case["assigned_gt_index"], "exact")
        label = torch.full_like(assigned, -1)
        label[match.kernels] = labels[match.objects]
        report.compare(f"{t}.label", label, case["assigned_label"], "exact")


def _losses(arrays, meta, report):
    def check(name, value, gradient, logits, loss):
        logits = arrays[logits].clone().requires_grad_()
        result = loss(logits)
        result.backward()
        report.compare(name, result, arrays[f"{name}.{value}"], "loss")
        report.compare(f"{name} gradient", logits.grad, arrays[f"{name}.{gradient}"])

    target = arrays["mask_target"]
    rows = torch.arange(len(target))
    check("dice", "value", "grad_pred", "mask_pred",
          lambda x: 4 / len(target) * AllPixels().mask_sums(x, target, rows)[1])  # fmt: skip
    check("mask_bce", "value", "grad_pred", "mask_pred",
          lambda x: AllPixels().mask_sums(x, target, rows)[0] / target.numel())  # fmt: skip
    labels, weights = arrays["focal_cls.labels"], arrays["focal_cls.weights"]
    divisor = arrays["focal_cls.avg_factor"]
    check("focal_cls", "value_w2", "grad", "focal_cls.logits",
          lambda x: 2 * class_focal_sum(x, labels, weights) / divisor)  # fmt: skip
    pixels = arrays["focal_seg.targets"]
    foreground = (pixels < arrays["focal_seg.logits_flat"].shape[1]).sum().clamp(min=1)
    check("focal_seg", "value_w1", "grad", "focal_seg.logits_flat",
          lambda x: pixel_focal_sum(x.T[None], pixels[None]) / foreground)  # fmt: skip
    owners = torch.where(arrays["rank.target"] == 255, -1, arrays["rank.target"])
    check("rank", "value_w0.1", "grad", "rank.logits",
          lambda x: 0.1 * owner_sum(x, owners) / owners.numel())  # fmt: skip


def _resizer(meta, logits):
    sizes = meta["img_meta"]
    return MaskResizer(
        grid_size=logits.shape[-2:],
        padded_size=sizes["batch_input_shape"],
        image_size=sizes["img_shape"][:2],
        output_size=sizes["ori_shape"][:2],
        device=logits.device,
    )


def _instance_post(arrays, meta, report):
    logits, golden = arrays["mask_logits_stride4"], arrays["probs_at_original"]
    resizer = _resizer(meta, logits)
    probabilities = resizer(logits.sigmoid())
    ours = probabilities[arrays["proposal_index"][: len(golden)]].half()
    report.compare("probs_at_original (float16)", ours, golden, "half")
    selection = InstanceSelection(
        arrays["cls_logits"].sigmoid(), top_k=int(arrays["topk"]), size=resizer.output_size
    )
    selection.add(range(len(logits)), probabilities)
    result = selection.finish()
    report.compare("scores", result.scores, arrays["scores"])
    report.compare("labels", result.labels, arrays["labels"], "exact")
    report.compare("masks", result.masks, arrays["masks"], "exact")


def _panoptic_merge(arrays, meta, report):
    for t in ("t0", "t1", "t2"):
        case, things = _under(arrays, t), meta[t]["num_thing_classes"]
        num_classes = things + meta[t]["num_stuff_classes"]
        size = case["masks_prob"].shape[-2:]
        fusion = PanopticFusion(case["scores"], case["labels"], num_thing_classes=things, size=size)
        fusion.add(0, case["masks_prob"])
        id_map, segments = fusion.finish()
        golden = case["panoptic_id_map"]
        compare_panoptic(report, t, (id_map, segments), num_classes, golden)
        ours = {s.label + 1000 * (s.id - 1): s.area for s in segments}
        theirs = {int(i): int((golden == i).sum()) for i in golden.unique() if i != num_classes}
        report.add(f"{t}.areas", float(ours != theirs), "exact")
    full, case = meta["full"], _under(arrays, "full")
    logits, things = case["mask_logits_stride4"], full["num_thing_classes"]
    resizer = _resizer(full, logits)
    scores, labels = kernel_scores(
        case["cls_logits"].sigmoid(), num_things=full["num_proposals"], num_thing_classes=things
    )
    probabilities = resizer(logits.sigmoid())
    report.compare("full.probs", probabilities.half(), case["probs_at_original"], "half")
    fusion = PanopticFusion(scores, labels, num_thing_classes=things, size=resizer.output_size)
    for index in range(len(probabilities)):  # one at a time: the running argmax is what is tested
        fusion.add(index, probabilities[index : index + 1])
    num_classes = things + full["num_stuff_classes"]
    compare_panoptic(report, "full", fusion.finish(), num_classes, case["panoptic_id_map"])


_CHECKS: dict[str, Callable[[Arrays, dict, Report], None]] = {
    "assigner": _assigner,
    "fpn_neck": _fpn_neck,
    "instance_post": _instance_post,
    "kernel_update_head_instance": _kernel_update_head,
    "kernel_update_head_panoptic": _kernel_update_head,
    "kernel_updator": _kernel_updater,
    "losses": _losses,
    "panoptic_merge": _panoptic_merge,
    "positional_encoding": _position_encoding,
    "semantic_fpn": _semantic_fpn,
}
