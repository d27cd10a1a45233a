"""Golden numbers of single parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from parity_cases import compare_panoptic, load_npz
from parity_report import Report
from torch import Tensor, nn

from knet.checkpoint.published_names import import_published, to_published_name
from knet.modeling.instances import InstanceSelection
from knet.modeling.kernels import KernelUpdater, UpdateRound
from knet.modeling.losses import AllPixels, class_focal_sum, owner_sum, pixel_focal_sum
from knet.modeling.matcher import MaskMatcher
from knet.modeling.neck import SemanticFPNNeck
from knet.modeling.panoptic import PanopticFusion, kernel_scores
from knet.modeling.positions import SinePositionEncoding
from knet.modeling.resize import MaskResizer

Arrays = Mapping[str, Tensor]
_ROUND = "roi_head.mask_head.0."
_UPDATER = _ROUND + "kernel_update_conv."
_NECK = "rpn_head.localization_fpn."


def check_modules(folder: Path, report: Report) -> None:
    """Run every part whose file the folder holds; an unknown file is an error."""
    for path in sorted(folder.glob("*.npz")):
        if path.stem not in _CHECKS:
            raise ValueError(f"{path}: no check for this part")
        meta = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        _CHECKS[path.stem](f"modules/{path.stem}", load_npz(path), meta, report)


def _load(module: nn.Module, arrays: Arrays, published: str, ours: str) -> None:
    weights = {published + k[2:]: v for k, v in arrays.items() if k.startswith("w.")}
    renamed = import_published(weights)
    module.load_state_dict({name.removeprefix(ours): value for name, value in renamed.items()})


def _gradients(name, module, golden, prefix, published, ours, report):
    for parameter, value in module.named_parameters():
        key = to_published_name(ours + parameter).removeprefix(published)
        report.compare(
            f"{name}/grad {key}", value.grad.norm(), golden[prefix + key], "gradient norm"
        )


def _position_encoding(name, arrays, meta, report):
    for key, golden in arrays.items():
        channels, height, width = golden.shape
        ours = SinePositionEncoding(channels)(torch.zeros(1, 1, height, width))
        report.compare(f"{name}/{key}", ours, golden)


def _semantic_fpn(name, arrays, meta, report):
    width = arrays["p2"].shape[1]
    neck = SemanticFPNNeck(in_channels=[width] * 4, hidden_dim=width, norm_groups=32, conv_std=0.01)
    _load(neck, arrays, _NECK, "heads.neck.")
    features = [arrays[f"p{level}"].clone().requires_grad_() for level in range(2, 6)]
    out = neck(features)
    for i in range(2):
        report.compare(f"{name}/out{i}", out[i], arrays[f"out{i}"])
    (out[0].square().sum() + 0.5 * out[1].sum()).backward()
    _gradients(name, neck, arrays, "gradnorm.", _NECK, "heads.neck.", report)
    for level, feature in zip(range(2, 6), features):
        report.compare(
            f"{name}/grad p{level}",
            feature.grad.norm(),
            arrays[f"gradnorm.p{level}"],
            "gradient norm",
        )


def _fpn_neck(name, arrays, meta, report):
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import Backbone
    from detectron2.modeling.backbone.fpn import FPN

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
    _load(fpn, arrays, "neck.", "backbone.")
    for key, ours in fpn(None).items():
        report.compare(f"{name}/{key}", ours, arrays[key])


def _kernel_updater(name, arrays, meta, report):
    width = arrays["w.fc_layer.weight"].shape[0]
    for size in ("k1", "k3"):
        updater = KernelUpdater(width)
        _load(updater, arrays, _UPDATER, "heads.rounds.0.updater.")
        groups = arrays[f"{size}.update_feature_in"].clone().requires_grad_()
        kernels = arrays[f"{size}.input_feature_in"].clone().requires_grad_()
        # a larger kernel shares its group feature among its positions
        out = updater(groups[:, :, None], kernels).flatten(0, 1)
        report.compare(f"{name}/{size}.out", out, arrays[f"{size}.out"])
        out.backward(arrays[f"{size}.grad_out"])
        report.compare(
            f"{name}/{size}.grad groups", groups.grad, arrays[f"{size}.grad_update_feature"]
        )
        report.compare(
            f"{name}/{size}.grad kernels", kernels.grad, arrays[f"{size}.grad_input_feature"]
        )
        _gradients(
            f"{name}/{size}",
            updater,
            arrays,
            f"{size}.gradnorm.",
            _UPDATER,
            "heads.rounds.0.updater.",
            report,
        )


def _kernel_update_head(name, arrays, meta, report):
    x = arrays["x"].clone().requires_grad_()
    kernels = arrays["proposal_feats"].flatten(2).requires_grad_()
    masks = arrays["mask_preds_in"].clone().requires_grad_()
    update = UpdateRound(
        dim=x.shape[1],
        num_heads=4,
        ffn_dim=len(arrays["w.ffn.layers.0.0.weight"]),
        num_classes=len(arrays["w.fc_cls.weight"]),
    )
    _load(update, arrays, _ROUND, "heads.rounds.0.")
    out = update(x, kernels, masks)
    report.compare(f"{name}/cls_score", out.class_logits, arrays["cls_score"])
    report.compare(f"{name}/mask_preds", out.masks, arrays["mask_preds_out"])
    report.compare(f"{name}/object_feats", out.kernels, arrays["object_feats_out"].flatten(2))
    torch.autograd.backward(
        [out.class_logits, out.masks, out.kernels],
        [arrays["grad_cls"], arrays["grad_mask"], arrays["grad_obj"].flatten(2)],
    )
    report.compare(f"{name}/grad x", x.grad, arrays["grad_x"])
    report.compare(f"{name}/grad kernels", kernels.grad, arrays["grad_proposal"].flatten(2))
    report.compare(
        f"{name}/mask gets no gradient", masks.grad is None, arrays["grad_mask_in_is_none"], "exact"
    )
    _gradients(name, update, arrays, "gradnorm.", _ROUND, "heads.rounds.0.", report)


def _assigner(name, arrays, meta, report):
    for t in sorted({key.split(".")[0] for key in arrays}):
        case = {
            key[len(t) + 1 :]: value for key, value in arrays.items() if key.startswith(t + ".")
        }
        logits = case["cls_logits"] if case["use_cls"] else None
        labels, masks = case["gt_labels"], case["gt_masks"].float()
        matcher = MaskMatcher()
        overlaps = AllPixels().overlaps(case["mask_logits"][None], masks[None])

        def cost_of(matcher, logits=logits, labels=labels, overlaps=overlaps):
            cost = matcher.mask_cost(overlaps)[0]
            if logits is None:
                return cost
            return cost + matcher.class_cost(logits[None], labels[None])[0]

        matcher_cost = cost_of(matcher)
        if "cost_total" in case:
            report.compare(f"{name}/{t}.cost_total", matcher_cost, case["cost_total"])
            terms = {"mask": (0.0, 1.0, 0.0), "dice": (0.0, 0.0, 4.0), "cls": (2.0, 0.0, 0.0)}
            for term, (w_cls, w_mask, w_dice) in terms.items():
                if term == "cls" and logits is None:
                    continue
                only = MaskMatcher(class_weight=w_cls, mask_weight=w_mask, dice_weight=w_dice)
                report.compare(f"{name}/{t}.cost_{term}", cost_of(only), case[f"cost_{term}"])
        (match,) = matcher.match([matcher_cost.numpy()])
        assigned = torch.full((len(case["mask_logits"]),), -1)
        assigned[match.kernels] = torch.from_numpy(match.objects)
        report.compare(f"{name}/{t}.assigned", assigned, case["assigned_gt_index"], "exact")
        label = torch.full_like(assigned, -1)
        label[match.kernels] = labels[match.objects]
        report.compare(f"{name}/{t}.label", label, case["assigned_label"], "exact")


def _losses(name, arrays, meta, report):
    def check(key, loss, logits, golden_value, golden_gradient):
        logits = logits.clone().requires_grad_()
        value = loss(logits)
        value.backward()
        report.compare(f"{name}/{key}", value, golden_value, "loss")
        report.compare(f"{name}/{key} gradient", logits.grad, golden_gradient)

    pred, target = arrays["mask_pred"], arrays["mask_target"]

    def mask_loss(index: int, factor: Tensor | float) -> Callable[[Tensor], Tensor]:
        rows = torch.arange(len(target))
        return lambda x: factor * AllPixels().mask_sums(x, target, rows)[index]

    check("dice", mask_loss(1, 4 / len(target)), pred, arrays["dice.value"],
          arrays["dice.grad_pred"])  # fmt: skip
    check("mask_bce", mask_loss(0, 1 / target.numel()), pred, arrays["mask_bce.value"],
          arrays["mask_bce.grad_pred"])  # fmt: skip
    labels, weights = arrays["focal_cls.labels"], arrays["focal_cls.weights"]
    divisor = arrays["focal_cls.avg_factor"]
    check("focal_cls", lambda x: 2 * class_focal_sum(x, labels, weights) / divisor,
          arrays["focal_cls.logits"], arrays["focal_cls.value_w2"],
          arrays["focal_cls.grad"])  # fmt: skip
    logits, labels_seg = arrays["focal_seg.logits_flat"], arrays["focal_seg.targets"]
    foreground = (labels_seg < logits.shape[1]).sum().clamp(min=1)

    def seg(x: Tensor) -> Tensor:
        return pixel_focal_sum(x.T[None], labels_seg[None]) / foreground

    check("focal_seg", seg, logits, arrays["focal_seg.value_w1"], arrays["focal_seg.grad"])
    owners = torch.where(arrays["rank.target"] == 255, -1, arrays["rank.target"])

    def rank(x: Tensor) -> Tensor:
        return 0.1 * owner_sum(x, owners) / owners.numel()

    check("rank", rank, arrays["rank.logits"], arrays["rank.value_w0.1"], arrays["rank.grad"])


def _resizer(meta, logits):
    sizes = meta["img_meta"]
    return MaskResizer(
        grid_size=logits.shape[-2:],
        padded_size=sizes["batch_input_shape"],
        image_size=sizes["img_shape"][:2],
        output_size=sizes["ori_shape"][:2],
        device=logits.device,
    )


def _instance_post(name, arrays, meta, report):
    logits = arrays["mask_logits_stride4"]
    resizer = _resizer(meta, logits)
    probabilities = resizer(logits.sigmoid())
    report.compare(
        f"{name}/probs_at_original (float16)",
        probabilities[arrays["proposal_index"][: len(arrays["probs_at_original"])]].half(),
        arrays["probs_at_original"],
        "half",
    )
    selection = InstanceSelection(
        arrays["cls_logits"].sigmoid(), top_k=int(arrays["topk"]), size=resizer.output_size
    )
    selection.add(range(len(logits)), probabilities)
    result = selection.finish()
    report.compare(f"{name}/scores", result.scores, arrays["scores"])
    report.compare(f"{name}/labels", result.labels, arrays["labels"], "exact")
    report.compare(f"{name}/masks", result.masks, arrays["masks"], "exact")


def _panoptic_merge(name, arrays, meta, report):
    for t in ("t0", "t1", "t2"):
        sizes, probabilities = meta[t], arrays[f"{t}.masks_prob"]
        fusion = PanopticFusion(
            arrays[f"{t}.scores"],
            arrays[f"{t}.labels"],
            num_thing_classes=sizes["num_thing_classes"],
            size=probabilities.shape[-2:],
        )
        fusion.add(0, probabilities)
        id_map, segments = fusion.finish()
        num_classes = sizes["num_thing_classes"] + sizes["num_stuff_classes"]
        golden = arrays[f"{t}.panoptic_id_map"]
        compare_panoptic(f"{name}/{t}", (id_map, segments), num_classes, golden, report)
        ours = {s.label + 1000 * (s.id - 1): s.area for s in segments}
        theirs = {int(i): int((golden == i).sum()) for i in golden.unique() if i != num_classes}
        report.add(f"{name}/{t}.areas", float(ours != theirs), "exact")
    full, logits = meta["full"], arrays["full.mask_logits_stride4"]
    resizer = _resizer(full, logits)
    scores, labels = kernel_scores(
        arrays["full.cls_logits"].sigmoid(),
        num_things=full["num_proposals"],
        num_thing_classes=full["num_thing_classes"],
    )
    fusion = PanopticFusion(
        scores, labels, num_thing_classes=full["num_thing_classes"], size=resizer.output_size
    )
    probabilities = resizer(logits.sigmoid())
    report.compare(
        f"{name}/full.probs", probabilities.half(), arrays["full.probs_at_original"], "half"
    )
    for index in range(len(probabilities)):  # one at a time: the running argmax is what is tested
        fusion.add(index, probabilities[index : index + 1])
    num_classes = full["num_thing_classes"] + full["num_stuff_classes"]
    compare_panoptic(
        f"{name}/full", fusion.finish(), num_classes, arrays["full.panoptic_id_map"], report
    )


_CHECKS: dict[str, Callable[[str, Arrays, dict, Report], None]] = {
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
