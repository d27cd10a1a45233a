"""What an update round does with kernels, away from the pixels (K-Net §3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
