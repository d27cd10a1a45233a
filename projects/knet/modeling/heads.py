"""Neck, kernel head and update rounds as one module: feature maps in, predictions out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from knet.modeling.kernel_head import InitialKernels, KernelHead
from knet.modeling.kernel_rounds import KernelRounds
from knet.modeling.kernel_update import RoundOutput


class KNetHeads(nn.Module):
    """Everything of K-Net behind the backbone.

    Args:
        neck: maps a list of feature maps to a localising and a classifying map.
        kernel_head: yields the initial kernels.
        rounds: the update rounds.
    """

    def __init__(self, *, neck: nn.Module, kernel_head: KernelHead, rounds: KernelRounds) -> None:
        super().__init__()
        self.neck = neck
        self.kernel_head = kernel_head
        self.rounds = rounds

    def forward(self, features: Sequence[Tensor]) -> tuple[InitialKernels, list[RoundOutput]]:
        """Pyramid maps (B, C_i, H_i, W_i), finest first -> initial kernels and every round."""
        initial = self.kernel_head(*self.neck(features))
        rounds = self.rounds(initial.features, initial.kernels, initial.masks)
        return initial, rounds
