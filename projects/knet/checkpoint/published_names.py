"""Parameter names of the published checkpoints (OpenMMLab layout) and ours.

A rule is a pair of patterns; `{}` stands for a part without dots that both names share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

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

_MASK_RULES = {
    **{f"{a}.{x}.{{}}": f"{b}.{y}.{{}}" for a, b in _BLOCKS.items() for x, y in _NORM},
    "rpn_head.init_kernels.{}": "heads.kernel_head.init_kernels.{}",
    "rpn_head.conv_seg.{}": "heads.kernel_head.seg_predictor.{}",
    **{f"roi_head.mask_head.{{}}.{a}": f"heads.rounds.{{}}.{b}" for a, b in _ROUND.items()},
    **_FPN,
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

# ResNet-V1c counts the layers of its stem, and its stages from 1
_RESNET_V1C = {
    **{
        f"backbone.stem.{3 * i + j}.{{}}": f"backbone.stem.conv{i + 1}{norm}.{{}}"
        for i in range(3)
        for j, norm in enumerate(["", ".norm"])
    },
    **{
        f"backbone.layer{stage}.{{}}.{a}.{{}}": f"backbone.res{stage + 1}.{{}}.{b}.{{}}"
        for stage in range(1, 5)
        for a, b in [
            *((f"conv{i}", f"conv{i}") for i in (1, 2, 3)),
            *((f"bn{i}", f"conv{i}.norm") for i in (1, 2, 3)),
            ("downsample.0", "shortcut"),
            ("downsample.1", "shortcut.norm"),
        ]
    },
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
    **_RESNET_V1C,
}


def _compile(rules: Mapping[str, str]) -> list[tuple[re.Pattern[str], str]]:
    def pattern(template: str) -> re.Pattern[str]:
        return re.compile(r"([^.]+)".join(re.escape(part) for part in template.split("{}")))

    return [(pattern(source), target) for source, target in rules.items()]


# [instance and panoptic models, semantic models]: some names are common to both
_RULES = [_MASK_RULES, _SEMANTIC_RULES]
_TO_OURS = [_compile(rules) for rules in _RULES]
_TO_PUBLISHED = [_compile({b: a for a, b in rules.items()}) for rules in _RULES]


def _translate(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rules:
        found = pattern.fullmatch(name)
        if found:
            return target.format(*found.groups())
    return None


def to_our_name(published: str, *, semantic: bool = False) -> str | None:
    """Our name of a published parameter, or None where no rule fits."""
    return _translate(published, _TO_OURS[semantic])


def to_published_name(ours: str, *, semantic: bool = False) -> str | None:
    """The published name of one of our parameters, or None where no rule fits."""
    return _translate(ours, _TO_PUBLISHED[semantic])


def import_published(
    state: Mapping[str, Tensor], *, semantic: bool | None = None
) -> dict[str, Tensor]:
    """Rename a published state dict to ours.

    Kernels of a round's feature transform are kept as (C, C) matrices, not 1x1 convolutions.

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
        if ours is None:
            unknown.append(name)
            continue
        if ours.endswith("feature_transform.weight"):
            value = value.flatten(1)
        renamed[ours] = value
    if unknown:
        raise KeyError(f"no counterpart for the published parameters {', '.join(unknown)}")
    return renamed


def import_resnet_v1c(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Rename an ImageNet ResNet-V1c to ours, without its classifier; None for other weights.

    Raises:
        KeyError: as `import_published`.
    """
    if "stem.0.weight" not in state:
        return None
    return import_published(
        {f"backbone.{name}": value for name, value in state.items() if not name.startswith("fc.")},
        semantic=True,
    )
