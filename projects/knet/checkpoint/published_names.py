"""Parameter names of the published checkpoints (OpenMMLab layout) and ours.

A rule is a pair of patterns; `{}` stands for a part without dots that both names share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from knet.checkpoint.backbone_names import (
    DEFORM_RULES,
    RESNET_V1C_RULES,
    SWIN_ORIGINAL_RULES,
    SWIN_RULES,
    TORCHVISION_RULES,
    is_merging,
    rename,
    to_unfold_order,
    translate,
)

_UPDATER = {
    "dynamic_layer": "group_proj",
    "input_layer": "kernel_proj",
    "update_gate": "group_gate",
    "norm_in": "group_gate_norm",
    "norm_out": "group_norm",
    "input_gate": "kernel_gate",
    "input_norm_in": "kernel_gate_norm",
    "input_norm_out": "kernel_norm",
    "fc_layer": "out_proj",
    "fc_norm": "out_norm",
}
_ROUND = {
    "attention.attn.{}": "interaction.attention.{}",
    "attention.attn.out_proj.{}": "interaction.attention.out_proj.{}",
    "attention_norm.{}": "interaction.attention_norm.{}",
    "ffn.layers.0.0.{}": "interaction.ffn.0.{}",
    "ffn.layers.1.{}": "interaction.ffn.2.{}",
    "ffn_norm.{}": "interaction.ffn_norm.{}",
    "feat_transform.conv.{}": "feature_transform.{}",
    "cls_fcs.{}.{}": "class_branch.{}.{}",
    "fc_cls.{}": "class_predictor.{}",
    "mask_fcs.{}.{}": "mask_branch.{}.{}",
    "fc_mask.{}": "mask_predictor.{}",
    **{f"kernel_update_conv.{a}.{{}}": f"updater.{b}.{{}}" for a, b in _UPDATER.items()},
}


def _within(theirs: str, ours: str, rules: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{a}": f"{ours}.{b}" for a, b in rules.items()}


def _blocks(norm: str, names: Mapping[str, str]) -> dict[str, str]:
    """Rules for blocks of a convolution and a norm, which they call `norm`."""
    parts = ((norm, "norm"), ("conv", "conv"))
    return {f"{a}.{x}.{{}}": f"{b}.{y}.{{}}" for a, b in names.items() for x, y in parts}


# instance and panoptic models; the FPN counts levels from 0, Detectron2's names them by stride
_NECK = "rpn_head.localization_fpn"
_MASK_BLOCKS = {
    "rpn_head.loc_convs.0": "heads.kernel_head.localise",
    "rpn_head.seg_convs.0": "heads.kernel_head.classify",
    f"{_NECK}.conv_pred": "heads.neck.localise",
    f"{_NECK}.aux_convs.0": "heads.neck.classify",
    **{
        f"{_NECK}.convs_all_levels.{level}.conv{i}": f"heads.neck.levels.{level}.{i}"
        for level in range(4)
        for i in range(3)
    },
}
_MASK_RULES = {
    **_blocks("gn", _MASK_BLOCKS),
    "rpn_head.init_kernels.{}": "heads.kernel_head.init_kernels.{}",
    "rpn_head.conv_seg.{}": "heads.kernel_head.seg_predictor.{}",
    **_within("roi_head.mask_head.{}", "heads.rounds.{}", _ROUND),
    **{f"neck.lateral_convs.{i}.conv.{{}}": f"backbone.fpn_lateral{i + 2}.{{}}" for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv.{{}}": f"backbone.fpn_output{i + 2}.{{}}" for i in range(4)},
    **_within(
        "backbone", "backbone.bottom_up", {**DEFORM_RULES, **TORCHVISION_RULES, **SWIN_RULES}
    ),
}

# semantic models, with the blocks of all pixel decoders
_GENERATOR = "decode_head.kernel_generate_head"
_DECODER = {
    "convs.{}": "convs.{}",
    "conv_cat": "concat",
    "psp_modules.{}.1": "pooling.levels.{}.1",
    "image_pool.1": "image_pool.1",
    "aspp_modules.{}": "branches.{}",
    "bottleneck": "bottleneck",
    "lateral_convs.{}": "lateral_convs.{}",
    "fpn_convs.{}": "output_convs.{}",
    "fpn_bottleneck": "fuse",
}
_SEMANTIC_RULES = {
    **_within(_GENERATOR, "heads.kernel_head.decoder", _blocks("bn", _DECODER)),
    f"{_GENERATOR}.conv_seg.{{}}": "heads.kernel_head.classifier.{}",
    **_within("decode_head.kernel_update_head.{}", "heads.rounds.{}", _ROUND),
    **_blocks("bn", {"auxiliary_head.convs.{}": "heads.auxiliary.decoder.convs.{}"}),
    "auxiliary_head.conv_seg.{}": "heads.auxiliary.classifier.{}",
    **_within("backbone", "backbone", {**RESNET_V1C_RULES, **SWIN_RULES}),
}

# [instance and panoptic models, semantic models]: some names are common to both
_RULES = [_MASK_RULES, _SEMANTIC_RULES]
# a Swin backbone may also be named as in its original code
_TO_OURS = [
    {**rules, **_within("backbone", ours, SWIN_ORIGINAL_RULES)}
    for rules, ours in zip(_RULES, ["backbone.bottom_up", "backbone"])
]
_TO_PUBLISHED = [{b: a for a, b in rules.items()} for rules in _RULES]


def to_our_name(published: str, *, semantic: bool = False) -> str | None:
    """Our name of a published parameter, or None where no rule fits."""
    return translate(published, _TO_OURS[semantic])


def to_published_name(ours: str, *, semantic: bool = False) -> str | None:
    """The published name of one of our parameters, or None where no rule fits."""
    return translate(ours, _TO_PUBLISHED[semantic])


def is_derived(published: str) -> bool:
    """Whether a published buffer follows from the architecture, so that no model here keeps it."""
    return published.endswith((".relative_position_index", ".attn_mask"))


def import_published(
    state: Mapping[str, Tensor], *, semantic: bool | None = None
) -> dict[str, Tensor]:
    """Rename a published state dict to ours; what `is_derived` is left out.

    Args:
        state: published names and values.
        semantic: whether it is of a semantic model; by default seen from the names.

    Raises:
        KeyError: a parameter has no counterpart here; all such names are listed.
        ValueError: as `rename`, which also says how values change.
    """
    if semantic is None:
        semantic = any(name.startswith("decode_head.") for name in state)
    kept = {name: value for name, value in state.items() if not is_derived(name)}
    return rename(kept, _TO_OURS[semantic], kind="published")


def export_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `import_published`, with OpenMMLab's own names for a Swin backbone.

    Kernels that only training has are left out.

    Raises:
        KeyError: a parameter has no published counterpart.
    """
    # the classifier of a semantic model, which the others call seg_predictor
    semantic = "heads.kernel_head.classifier.weight" in state
    renamed, unknown = {}, []
    for name, value in state.items():
        if name.startswith("heads.training_kernels."):
            continue
        published = to_published_name(name, semantic=semantic)
        if published is None:
            unknown.append(name)
        elif published.endswith("feat_transform.conv.weight"):
            renamed[published] = value[..., None, None]
        else:
            renamed[published] = to_unfold_order(value) if is_merging(published) else value
        if published is not None and published.endswith(".relative_position_bias_table"):
            index = published.removesuffix("bias_table") + "index"
            renamed[index] = _relative_positions(len(value))
    if unknown:
        raise KeyError(
            f"no published counterpart for {len(unknown)} of {len(state)} parameters: "
            f"{', '.join(unknown[:4])}{' …' if len(unknown) > 4 else ''}"
        )
    return renamed


def _relative_positions(table_rows: int) -> Tensor:
    """Row of Swin's bias table for every pair of positions in a window."""
    side = (math.isqrt(table_rows) + 1) // 2
    at = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    shift = at.flatten(1)[:, :, None] - at.flatten(1)[:, None, :] + side - 1
    return shift[0] * (2 * side - 1) + shift[1]
