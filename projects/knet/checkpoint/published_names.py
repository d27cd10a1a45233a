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
    SWIN_ORIGINAL_RULES,
    SWIN_RULES,
    TORCHVISION_RULES,
    from_unfold_order,
    to_unfold_order,
    translate,
)

_NORM = [("gn", "norm"), ("conv", "conv")]

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

_NECK = "rpn_head.localization_fpn"

# the blocks of convolution and GroupNorm
_BLOCKS = {
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

# the FPN of the published models counts levels from 0, Detectron2's names them by stride
_FPN = {
    **{f"neck.lateral_convs.{i}.conv.{{}}": f"backbone.fpn_lateral{i + 2}.{{}}" for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv.{{}}": f"backbone.fpn_output{i + 2}.{{}}" for i in range(4)},
}


def _within(prefix: str, rules: Mapping[str, str]) -> dict[str, str]:
    return {f"backbone.{a}": f"{prefix}{b}" for a, b in rules.items()}


_MASK_RULES = {
    **{f"{a}.{x}.{{}}": f"{b}.{y}.{{}}" for a, b in _BLOCKS.items() for x, y in _NORM},
    "rpn_head.init_kernels.{}": "heads.kernel_head.init_kernels.{}",
    "rpn_head.conv_seg.{}": "heads.kernel_head.seg_predictor.{}",
    **{f"roi_head.mask_head.{{}}.{a}": f"heads.rounds.{{}}.{b}" for a, b in _ROUND.items()},
    **_FPN,
    **_within("backbone.bottom_up.", {**DEFORM_RULES, **TORCHVISION_RULES, **SWIN_RULES}),
}

# the pixel decoders of semantic models; blocks of convolution and BatchNorm
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
_BN = [("bn", "norm"), ("conv", "conv")]
_GENERATOR = "decode_head.kernel_generate_head"

# ResNet-V1c counts the layers of its stem; all else as torchvision
RESNET_V1C_RULES = {
    **{
        f"stem.{3 * i + j}.{{}}": f"stem.conv{i + 1}{norm}.{{}}"
        for i in range(3)
        for j, norm in enumerate(["", ".norm"])
    },
    **{a: b for a, b in TORCHVISION_RULES.items() if a.startswith("layer")},
}

_SEMANTIC_RULES = {
    **{
        f"{_GENERATOR}.{a}.{x}.{{}}": f"heads.kernel_head.decoder.{b}.{y}.{{}}"
        for a, b in _DECODER.items()
        for x, y in _BN
    },
    f"{_GENERATOR}.conv_seg.{{}}": "heads.kernel_head.classifier.{}",
    **{
        f"decode_head.kernel_update_head.{{}}.{a}": f"heads.rounds.{{}}.{b}"
        for a, b in _ROUND.items()
    },
    **{
        f"auxiliary_head.convs.{{}}.{x}.{{}}": f"heads.auxiliary.decoder.convs.{{}}.{y}.{{}}"
        for x, y in _BN
    },
    "auxiliary_head.conv_seg.{}": "heads.auxiliary.classifier.{}",
    **_within("backbone.", {**RESNET_V1C_RULES, **SWIN_RULES}),
}


# [instance and panoptic models, semantic models]: some names are common to both
_RULES = [_MASK_RULES, _SEMANTIC_RULES]
# a Swin backbone may also be named as in its original code
_TO_OURS = [
    {**rules, **_within(prefix, SWIN_ORIGINAL_RULES)}
    for rules, prefix in zip(_RULES, ["backbone.bottom_up.", "backbone."])
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

    Kernels of a round's feature transform are kept as (C, C) matrices, not 1x1 convolutions, and
    Swin's merged patches in the order that `knet.checkpoint.backbone_names` explains.

    Args:
        state: published names and values.
        semantic: whether it is of a semantic model; by default seen from the names.

    Raises:
        KeyError: a parameter has no counterpart here; all such names are listed.
    """
    if semantic is None:
        semantic = any(name.startswith("decode_head.") for name in state)
    renamed, unknown = {}, []
    for name, value in state.items():
        ours = to_our_name(name, semantic=semantic)
        if ours is not None:
            renamed[ours] = _to_our_value(name, value)
        elif not is_derived(name):
            unknown.append(name)
    if unknown:
        raise KeyError(f"no counterpart for the published parameters {', '.join(unknown)}")
    return renamed


def export_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `import_published`, with OpenMMLab's own names for a Swin backbone.

    Raises:
        KeyError: a parameter has no published counterpart.
    """
    # the classifier of a semantic model, which the others call seg_predictor
    semantic = "heads.kernel_head.classifier.weight" in state
    renamed, unknown = {}, []
    for name, value in state.items():
        published = to_published_name(name, semantic=semantic)
        if published is None:
            unknown.append(name)
        else:
            renamed[published] = _to_published_value(published, value)
            if published.endswith(".relative_position_bias_table"):
                index = published.removesuffix("bias_table") + "index"
                renamed[index] = _relative_positions(len(value))
    if unknown:
        raise KeyError(
            f"no published counterpart for {len(unknown)} of {len(state)} parameters: "
            f"{', '.join(unknown[:4])}{' …' if len(unknown) > 4 else ''}"
        )
    return renamed


def _to_our_value(published: str, value: Tensor) -> Tensor:
    if published.endswith("feat_transform.conv.weight") and value.dim() > 1:
        return value.flatten(1)
    if _is_merging(published):
        return from_unfold_order(value)
    return value


def _to_published_value(published: str, value: Tensor) -> Tensor:
    if published.endswith("feat_transform.conv.weight"):
        return value[..., None, None]
    if _is_merging(published):
        return to_unfold_order(value)
    return value


def _is_merging(published: str) -> bool:
    return published.startswith("backbone.stages.") and ".downsample." in published


def _relative_positions(table_rows: int) -> Tensor:
    """Row of Swin's bias table for every pair of positions in a window."""
    side = (math.isqrt(table_rows) + 1) // 2
    at = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    shift = at.flatten(1)[:, :, None] - at.flatten(1)[:, None, :] + side - 1
    return shift[0] * (2 * side - 1) + shift[1]
