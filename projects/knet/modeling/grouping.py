"""The two spatial operations of a round: group pixels by masks, and convolve them with kernels.

Each round looks at the features through its own 1x1 transform, x' = W x + b. Both operations are
linear in x', so the transform is absorbed into the kernels: the sum over a mask of x' is
W (sum of x) + b * area, and k . x' is (W^T k) . x + k . b. The large map is never transformed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from knet.modeling.precision import at_least_float32


def hard_groups(masks: Tensor) -> Tensor:
    """Binary groups (B, N, H, W) of mask logits: sigmoid > 0.5 is logit > 0. No gradient."""
    return masks.detach() > 0


def soft_groups(masks: Tensor) -> Tensor:
    """Soft groups (B, N, H, W) of mask logits: softmax over the kernels, differentiable."""
    return masks.softmax(dim=1)


def gather_features(x: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the features of every group (K-Net eq. 4; a sum, not a mean).

    Computed in float32 whatever the autocast type: sums over thousands of pixels overflow float16.

    Args:
        x: features (B, C, H, W).
        groups: (B, N, H, W), boolean or weights.

    Returns:
        Group features (B, N, C) and group areas (B, N), both float32.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x).flatten(2)
        weights = groups.to(x.dtype).flatten(2)
        return torch.bmm(weights, x.transpose(1, 2)), weights.sum(dim=2)


def convolve(x: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Convolve each image with its own 1x1 kernels (K-Net eq. 2).

    Args:
        x: features (B, C, H, W).
        kernels: (B, N, C).
        bias: (B, N).

    Returns:
        Mask logits (B, N, H, W).
    """
    masks = torch.baddbmm(
        bias.to(kernels.dtype)[:, :, None], kernels, x.flatten(2).to(kernels.dtype)
    )
    return masks.unflatten(2, x.shape[-2:])
