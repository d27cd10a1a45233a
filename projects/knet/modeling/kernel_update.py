"""One update round: gather, update, interact, classify, segment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from knet.modeling.grouping import convolve, gather_features, hard_groups
from knet.modeling.precision import at_least_float32


class RoundOutput(NamedTuple):
    """Result of one round.

    Attributes:
        class_logits: (B, N, K) for sigmoid, without background; None without a class branch.
        masks: (B, N, H, W) logits.
        kernels: (B, N, C), handed to the next round.
    """

    class_logits: Tensor | None
    masks: Tensor
    kernels: Tensor


class KernelUpdater(nn.Module):
    """Adaptive kernel update (K-Net §3.3, eq. 5-7): group features and kernels, each gated.

    Args:
        dim: width C of group features and kernels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.group_proj = nn.Linear(dim, 2 * dim)
        self.kernel_proj = nn.Linear(dim, 2 * dim)
        self.group_gate = nn.Linear(dim, dim)
        self.group_gate_norm = nn.LayerNorm(dim)
        self.kernel_gate = nn.Linear(dim, dim)
        self.kernel_gate_norm = nn.LayerNorm(dim)
        self.group_norm = nn.LayerNorm(dim)
        self.kernel_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)
        self.out_norm = nn.LayerNorm(dim)

    def forward(self, groups: Tensor, kernels: Tensor) -> Tensor:
        """Group features and kernels, (..., C) and broadcastable, -> updated kernels (..., C)."""
        group_in, group_out = self.group_proj(groups).chunk(2, dim=-1)
        kernel_in, kernel_out = self.kernel_proj(kernels).chunk(2, dim=-1)
        gate = group_in * kernel_in
        group_gate = self.group_gate_norm(self.group_gate(gate)).sigmoid()
        kernel_gate = self.kernel_gate_norm(self.kernel_gate(gate)).sigmoid()
        updated = group_gate * self.group_norm(group_out)
        updated = updated + kernel_gate * self.kernel_norm(kernel_out)
        return torch.relu(self.out_norm(self.out_proj(updated)))


class KernelInteraction(nn.Module):
    """Self-attention over all kernels of an image, then a feed-forward net (K-Net §3.3).

    Args:
        dim, num_heads, ffn_dim: as in a post-norm transformer encoder layer without dropout.
    """

    def __init__(self, dim: int, *, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.ReLU(), nn.Linear(ffn_dim, dim))
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, kernels: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        attended, _ = self.attention(kernels, kernels, kernels, need_weights=False)
        kernels = self.attention_norm(kernels + attended)
        return self.ffn_norm(kernels + self.ffn(kernels))


def _projection(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU())


class UpdateRound(nn.Module):
    """One of the S rounds (K-Net §3.3, fig. 3).

    Args:
        dim: width C.
        num_heads, ffn_dim: of the kernel interaction.
        num_classes: K of the class branch, or None for no class branch.
        grouping: turns mask logits into groups, `hard_groups` or `soft_groups`.
        class_prior: initial probability of every class.
        updater_dim: width of the kernel updater, which must divide C; by default C. With less,
            kernels and group features are split into C / updater_dim parts, updated one by one
            with shared weights and joined again, as in the published semantic models whose
            512-wide kernels pass a 256-wide updater.
        xavier: initialise all matrices Xavier-uniformly, as the published instance and panoptic
            models; otherwise they keep PyTorch's defaults, as the published semantic ones.
        residual_masks: add to the masks of the round before, at first nothing; published: masks are
            made anew.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        num_classes: int | None,
        grouping: Callable[[Tensor], Tensor] = hard_groups,
        class_prior: float = 0.01,
        updater_dim: int | None = None,
        xavier: bool = True,
        residual_masks: bool = False,
    ) -> None:
        super().__init__()
        updater_dim = updater_dim or dim
        self.parts = dim // updater_dim
        self.grouping = grouping
        self.residual_masks = residual_masks
        self.feature_transform = nn.Linear(dim, dim)
        self.updater = KernelUpdater(updater_dim)
        self.interaction = KernelInteraction(dim, num_heads=num_heads, ffn_dim=ffn_dim)
        if num_classes is None:
            self.class_branch = self.class_predictor = None
        else:
            self.class_branch = _projection(dim)
            self.class_predictor = nn.Linear(dim, num_classes)
        self.mask_branch = _projection(dim)
        self.mask_predictor = nn.Linear(dim, dim)
        self._init_weights(class_prior, xavier)

    def _init_weights(self, class_prior: float, xavier: bool) -> None:
        for parameter in self.parameters():
            if xavier and parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        if self.residual_masks:
            nn.init.zeros_(self.mask_predictor.weight)
            nn.init.zeros_(self.mask_predictor.bias)
        if self.class_predictor is not None:
            nn.init.constant_(self.class_predictor.bias, -math.log(1 / class_prior - 1))

    def forward(self, features: Tensor, kernels: Tensor, masks: Tensor) -> RoundOutput:
        """Update every kernel from the pixels that its mask selects.

        Args:
            features: (B, C, H, W), the same in every round.
            kernels: (B, N, C) of the round before.
            masks: (B, N, H, W) logits of the round before.
        """
        transform = self.feature_transform
        groups, areas = gather_features(features, self.grouping(masks))
        with torch.autocast(features.device.type, enabled=False):
            groups = groups @ at_least_float32(transform.weight).T
            groups = groups + areas[..., None] * at_least_float32(transform.bias)
            # LayerNorm follows within the updater; its input sums must not pass float16
            kernels = at_least_float32(kernels)
            kernels = self.updater(self._split(groups), self._split(kernels)).flatten(2)
        kernels = self.interaction(kernels)

        class_logits = None
        if self.class_branch is not None and self.class_predictor is not None:
            class_logits = self.class_predictor(self.class_branch(kernels))
        mask_kernels = self.mask_predictor(self.mask_branch(kernels))
        found = convolve(features, mask_kernels @ transform.weight, mask_kernels @ transform.bias)
        if self.residual_masks:
            found = masks + found
        return RoundOutput(class_logits, found, kernels)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, parts, C / parts)."""
        return x.unflatten(2, (self.parts, -1))
