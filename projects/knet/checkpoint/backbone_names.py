"""Parameter names of backbones elsewhere and ours, without the prefix `backbone.`.

A rule is a pair of patterns, theirs and ours; `{}` stands for a part without dots that both share.

Swin comes in two layouts. Instance and panoptic K-Net models, and all of OpenMMLab, are named
`stages.…` and merge 2x2 patches with `nn.Unfold`, whose channels run (channel, row, column). The
semantic K-Net models were trained with the original code, are named `layers.…`, and concatenate
the patches (0, 0), (1, 0), (0, 1), (1, 1), given as (row, column), as timm and we do. So names
tell which order the values are in, and `rename` brings both into ours.

EfficientNet-PyTorch has no such rule: see `import_efficientnet`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

Rules = Mapping[str, str]

_BOTTLENECK = {
    **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
    **{f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)},
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}
_LAYERS = {
    f"layer{stage}.{{}}.{a}.{{}}": f"res{stage + 1}.{{}}.{b}.{{}}"
    for stage in range(1, 5)
    for a, b in _BOTTLENECK.items()
}
TORCHVISION_RULES: dict[str, str] = {
    "conv1.{}": "stem.conv1.{}",
    "bn1.{}": "stem.conv1.norm.{}",
    **_LAYERS,
}
TORCHVISION_UNUSED = ("fc.{}",)
# ResNet-V1c counts the layers of its stem
RESNET_V1C_RULES: dict[str, str] = {
    **{f"stem.{3 * i}.{{}}": f"stem.conv{i + 1}.{{}}" for i in range(3)},
    **{f"stem.{3 * i + 1}.{{}}": f"stem.conv{i + 1}.norm.{{}}" for i in range(3)},
    **_LAYERS,
}

# mmcv keeps the offsets' convolution inside the deformable one; all else as TORCHVISION_RULES.
# Channels are the same: pairs (row, column) a kernel position, then with DCNv2 the masks.
DEFORM_RULES: dict[str, str] = {
    f"layer{stage}.{{}}.conv2.conv_offset.{{}}": f"res{stage + 1}.{{}}.conv2_offset.{{}}"
    for stage in range(1, 5)
}

# parts of a block: OpenMMLab's names, and ours, which are those of all other layouts
_SWIN_BLOCK = {
    "norm1.{}": "norm1.{}",
    "attn.w_msa.qkv.{}": "attn.qkv.{}",
    "attn.w_msa.proj.{}": "attn.proj.{}",
    "attn.w_msa.relative_position_bias_table": "attn.relative_position_bias_table",
    "norm2.{}": "norm2.{}",
    "ffn.layers.0.0.{}": "mlp.fc1.{}",
    "ffn.layers.1.{}": "mlp.fc2.{}",
}
_SWIN_OPENMMLAB = {
    "patch_embed.projection.{}": "patch_embed.proj.{}",
    "patch_embed.norm.{}": "patch_embed.norm.{}",
    **{
        f"stages.{{}}.blocks.{{}}.{a}": f"layers.{{}}.blocks.{{}}.{b}"
        for a, b in _SWIN_BLOCK.items()
    },
    **{f"norm{i}.{{}}": f"norm{i}.{{}}" for i in range(4)},
}
_SWIN_SAME = {name: name for name in _SWIN_OPENMMLAB.values()}


def _merging(theirs: str, ours: str) -> dict[str, str]:
    parts = ("norm", "reduction")
    return {f"{theirs}.downsample.{p}.{{}}": f"{ours}.downsample.{p}.{{}}" for p in parts}


def _merging_late(stages: str) -> dict[str, str]:
    # they merge at the end of a stage, we at the beginning of the next
    rules: dict[str, str] = {}
    for i in range(3):
        rules |= _merging(f"{stages}.{i}", f"layers.{i + 1}")
    return rules


SWIN_RULES: dict[str, str] = {**_SWIN_OPENMMLAB, **_merging_late("stages")}
# the original code: semantic K-Net models and ImageNet weights
SWIN_ORIGINAL_RULES: dict[str, str] = {**_SWIN_SAME, **_merging_late("layers")}
SWIN_TIMM_RULES: dict[str, str] = {**_SWIN_SAME, **_merging("layers.{}", "layers.{}")}

# buffers that follow from the window size, and the classifier with its norm
SWIN_UNUSED = (
    "stages.{}.blocks.{}.attn.w_msa.relative_position_index",
    "layers.{}.blocks.{}.attn.relative_position_index",
    "layers.{}.blocks.{}.attn_mask",
    "norm.{}",
    "head.{}",
    "head.fc.{}",
)


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(r"([^.]+)".join(re.escape(part) for part in template.split("{}")))


def translate(name: str, rules: Rules) -> str | None:
    """The name that the first fitting rule gives, or None."""
    for theirs, ours in rules.items():
        found = _pattern(theirs).fullmatch(name)
        if found:
            return ours.format(*found.groups())
    return None


def rename(
    state: Mapping[str, Tensor], rules: Rules, unused: Iterable[str] = (), *, kind: str = "backbone"
) -> dict[str, Tensor]:
    """A state dict with our names, and values as we keep them.

    Swin's merged patches get our order, and the feature transforms of published models, which are
    1x1 convolutions, become (C, C) matrices.

    Args:
        state: their names and values.
        rules: see above.
        unused: patterns of names to leave out.
        kind: of the parameters, for messages.

    Raises:
        KeyError: neither a rule nor `unused` fits; all such names are listed.
        ValueError: as `from_unfold_order`.
    """
    renamed, unknown = {}, []
    for name, value in state.items():
        ours = translate(name, rules)
        if ours is not None:
            if is_merging(name):
                value = from_unfold_order(value)
            elif name.endswith("feat_transform.conv.weight") and value.dim() > 1:
                value = value.flatten(1)
            renamed[ours] = value
        elif not any(_pattern(template).fullmatch(name) for template in unused):
            unknown.append(name)
    if unknown:
        raise KeyError(f"no counterpart for the {kind} parameters {', '.join(unknown)}")
    return renamed


def is_merging(theirs: str) -> bool:
    """Whether a weight is of OpenMMLab's patch merging, whose channels are in another order."""
    return re.match(r"(backbone\.)?stages\.\d+\.downsample\.", theirs) is not None


def from_unfold_order(value: Tensor) -> Tensor:
    """Reorder the last axis of a patch merging's weight from (channel, row, column) of a patch,
    as `nn.Unfold` gives it, to (column, row, channel), as we concatenate.

    Args:
        value: (out, 4 C) of the reduction, (4 C,) of the norm.

    Raises:
        ValueError: another shape.
    """
    if not value.dim() or value.shape[-1] % 4:
        raise ValueError(
            f"a merging of 2x2 patches has a weight of shape {tuple(value.shape)}, whose channels "
            "are not fours: the file is damaged or of another model"
        )
    parts = value.unflatten(-1, (value.shape[-1] // 4, 2, 2))
    return parts.transpose(-3, -1).flatten(-3)


def to_unfold_order(value: Tensor) -> Tensor:
    """The inverse of `from_unfold_order`."""
    parts = value.unflatten(-1, (2, 2, value.shape[-1] // 4))
    return parts.transpose(-3, -1).flatten(-3)


def import_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """A Swin backbone of OpenMMLab, the original code or timm, in our names and order.

    Args:
        state: names without `backbone.`; classifier and buffers are left out.

    Returns:
        Our names and values, or None if these are not weights of a Swin Transformer.

    Raises:
        KeyError, ValueError: as `rename`.
    """
    if any(name.startswith("stages.") and ".attn.w_msa." in name for name in state):
        rules = SWIN_RULES
    elif not any(name.endswith(".attn.relative_position_bias_table") for name in state):
        return None
    # the first stage of the original merges at its end, timm's first stage does not merge
    elif "layers.0.downsample.reduction.weight" in state:
        rules = SWIN_ORIGINAL_RULES
    else:
        rules = SWIN_TIMM_RULES
    return rename(state, rules, SWIN_UNUSED)


def import_efficientnet(
    state: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """An EfficientNet as EfficientNet-PyTorch names it (`_blocks.15._expand_conv.weight`), in ours.

    It counts all blocks in a row, timm those of each stage, and timm's names of a block depend on
    what else it has. But both list the same weights in the same order, so they are set one against
    the other, shape by shape.

    Args:
        state: names and values without the classifier and what leads to it.
        ours: of the timm backbone, which may end before the last block.

    Returns:
        Our names and their values; what the backbone ends before is left out.

    Raises:
        ValueError: a weight has another shape than ours at its place: of another EfficientNet.
    """
    if not ours:
        raise ValueError(
            "weights of an EfficientNet, which only a backbone of timm can take: set "
            "MODEL.BACKBONE.NAME to build_timm_fpn_backbone and MODEL.TIMM.NAME to the model of "
            "the file, such as tf_efficientnet_lite0"
        )
    theirs = list(state.items())
    for k, (name, value) in enumerate(ours.items()):
        if k == len(theirs) or theirs[k][1].shape != value.shape:
            found = "none" if k == len(theirs) else f"{theirs[k][0]} {tuple(theirs[k][1].shape)}"
            raise ValueError(
                f"weights of an EfficientNet, but of another one than the backbone: where {name} "
                f"is {tuple(value.shape)}, the file has {found}. Set MODEL.TIMM.NAME to the model "
                "of the file, such as tf_efficientnet_lite0"
            )
    return {name: value for name, (_, value) in zip(ours, theirs)}
