"""Parameter names of backbones elsewhere and ours, without the prefix `backbone.`.

A rule is a pair of patterns, theirs and ours; `{}` stands for a part without dots that both share.

Swin comes in two layouts. Instance and panoptic K-Net models, and all of OpenMMLab, are named
`stages.…` and merge 2x2 patches with `nn.Unfold`, whose channels run (channel, row, column). The
semantic K-Net models were trained with the original code, are named `layers.…`, and concatenate
the patches (0, 0), (1, 0), (0, 1), (1, 1), given as (row, column), as timm and we do. So names
tell which order the values are in, and `import_swin` brings both into ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

Rules = Mapping[str, str]

TORCHVISION_RULES: dict[str, str] = {
    "conv1.{}": "stem.conv1.{}",
    "bn1.{}": "stem.conv1.norm.{}",
    **{
        f"layer{stage}.{{}}.{a}.{{}}": f"res{stage + 1}.{{}}.{b}.{{}}"
        for stage in range(1, 5)
        for a, b in [
            *((f"conv{i}", f"conv{i}") for i in (1, 2, 3)),
            *((f"bn{i}", f"conv{i}.norm") for i in (1, 2, 3)),
            ("downsample.0", "shortcut"),
            ("downsample.1", "shortcut.norm"),
        ]
    },
}
TORCHVISION_UNUSED = ("fc.{}",)

# mmcv keeps the offsets' convolution inside the deformable one; all else as TORCHVISION_RULES.
# Channels are the same: pairs (row, column) a kernel position, then with DCNv2 the masks.
DEFORM_RULES: dict[str, str] = {
    f"layer{stage}.{{}}.conv2.conv_offset.{{}}": f"res{stage + 1}.{{}}.conv2_offset.{{}}"
    for stage in range(1, 5)
}

# what timm, the original code and we name alike
_SWIN_COMMON = {
    name: name
    for name in (
        "patch_embed.proj.{}",
        "patch_embed.norm.{}",
        *(
            f"layers.{{}}.blocks.{{}}.{part}.{{}}"
            for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        ),
        "layers.{}.blocks.{}.attn.relative_position_bias_table",
        *(f"norm{i}.{{}}" for i in range(4)),
    )
}


def _merging(stages: str) -> dict[str, str]:
    # they merge at the end of a stage, we at the beginning of the next
    return {
        f"{stages}.{i}.downsample.{part}.{{}}": f"layers.{i + 1}.downsample.{part}.{{}}"
        for i in range(3)
        for part in ("norm", "reduction")
    }


# values of `downsample` need `from_unfold_order` as well
SWIN_RULES: dict[str, str] = {
    "patch_embed.projection.{}": "patch_embed.proj.{}",
    "patch_embed.norm.{}": "patch_embed.norm.{}",
    "stages.{}.blocks.{}.norm1.{}": "layers.{}.blocks.{}.norm1.{}",
    "stages.{}.blocks.{}.norm2.{}": "layers.{}.blocks.{}.norm2.{}",
    "stages.{}.blocks.{}.attn.w_msa.qkv.{}": "layers.{}.blocks.{}.attn.qkv.{}",
    "stages.{}.blocks.{}.attn.w_msa.proj.{}": "layers.{}.blocks.{}.attn.proj.{}",
    "stages.{}.blocks.{}.attn.w_msa.relative_position_bias_table": (
        "layers.{}.blocks.{}.attn.relative_position_bias_table"
    ),
    "stages.{}.blocks.{}.ffn.layers.0.0.{}": "layers.{}.blocks.{}.mlp.fc1.{}",
    "stages.{}.blocks.{}.ffn.layers.1.{}": "layers.{}.blocks.{}.mlp.fc2.{}",
    **_merging("stages"),
    **{f"norm{i}.{{}}": f"norm{i}.{{}}" for i in range(4)},
}

# the original code: semantic K-Net models and ImageNet weights
SWIN_ORIGINAL_RULES: dict[str, str] = {**_SWIN_COMMON, **_merging("layers")}

SWIN_TIMM_RULES: dict[str, str] = {
    **_SWIN_COMMON,
    "layers.{}.downsample.norm.{}": "layers.{}.downsample.norm.{}",
    "layers.{}.downsample.reduction.{}": "layers.{}.downsample.reduction.{}",
}

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
    state: Mapping[str, Tensor], rules: Rules, unused: Iterable[str] = ()
) -> dict[str, Tensor]:
    """A state dict with our names.

    Args:
        state: their names and values.
        rules: see above.
        unused: patterns of names to leave out.

    Raises:
        KeyError: neither a rule nor `unused` fits; all such names are listed.
    """
    renamed, unknown = {}, []
    skip = [_pattern(template) for template in unused]
    for name, value in state.items():
        ours = translate(name, rules)
        if ours is not None:
            renamed[ours] = value
        elif not any(pattern.fullmatch(name) for pattern in skip):
            unknown.append(name)
    if unknown:
        raise KeyError(f"no counterpart for the backbone's parameters {', '.join(unknown)}")
    return renamed


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
        KeyError: as `rename`.
    """
    if any(name.startswith("stages.") and ".attn.w_msa." in name for name in state):
        return {
            name: from_unfold_order(value) if ".downsample." in name else value
            for name, value in rename(state, SWIN_RULES, SWIN_UNUSED).items()
        }
    if not any(name.endswith(".attn.relative_position_bias_table") for name in state):
        return None
    # the first stage of the original merges at its end, timm's first stage does not merge
    original = "layers.0.downsample.reduction.weight" in state
    return rename(state, SWIN_ORIGINAL_RULES if original else SWIN_TIMM_RULES, SWIN_UNUSED)
