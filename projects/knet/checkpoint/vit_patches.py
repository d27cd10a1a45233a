"""Weights of a vision transformer for patches of another size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from knet.modeling.backbones.common import import_timm

# of class and registers, at most, in front of the positions
_MOST_PREFIX_TOKENS = 16


def fit_patches(
    state: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """Resample the embeddings of patches and of positions to the shapes that a model has.

    Patches as by FlexiViT (Beyer et al., CVPR 2023, section 3.4): a patch and the weights for it
    give, resampled, the same product. Positions on a square grid are interpolated.

    Args:
        state: names and values of the weights, in our names.
        ours: of the model.

    Returns:
        The names and values, and what was done, in words; empty if nothing. Shapes that nothing
        can be done about stay.
    """
    fitted, done = dict(state), []
    for name, value in state.items():
        wanted = ours[name].shape if name in ours else value.shape
        if value.shape == wanted or not value.is_floating_point():
            continue
        layers: Any
        if name.endswith("patch_embed.proj.weight") and value.shape[:2] == wanted[:2]:
            layers = import_timm("timm.layers", "a vision transformer")
            fitted[name] = layers.resample_patch_embed(value, list(wanted[2:]))
            done.append(f"patches of {value.shape[-1]} pixels to {wanted[-1]}")
        elif name.endswith("pos_embed") and value.dim() == len(wanted) == 3:
            old, prefix = _grid(value.shape[1])
            new, same = _grid(wanted[1])
            if prefix != same or prefix > _MOST_PREFIX_TOKENS or value.shape[2] != wanted[2]:
                continue
            layers = import_timm("timm.layers", "a vision transformer")
            fitted[name] = layers.resample_abs_pos_embed(
                value, new_size=[new, new], old_size=[old, old], num_prefix_tokens=prefix
            )
            done.append(f"{old}x{old} positions to {new}x{new}")
    return fitted, ", ".join(done)


def _grid(tokens: int) -> tuple[int, int]:
    """The side of the largest square of so many tokens, and how many are over."""
    side = math.isqrt(tokens)
    return side, tokens - side**2
