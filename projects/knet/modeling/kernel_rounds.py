"""The chain of update rounds."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from knet.modeling.kernel_update import RoundOutput, UpdateRound


class KernelRounds(nn.ModuleList):
    """S rounds without shared weights; each starts from the kernels and masks of the one before.

    Args:
        rounds: the rounds in order.
        recompute: keep no activations of a round in training; its backward pass computes them
            again.
    """

    def __init__(self, rounds: Iterable[UpdateRound], *, recompute: bool = False) -> None:
        super().__init__(rounds)
        self.recompute = recompute

    def forward(self, features: Tensor, kernels: Tensor, masks: Tensor) -> list[RoundOutput]:
        """Features (B, C, H, W), kernels (B, N, C), masks (B, N, H, W) -> every round's output."""
        outputs = []
        for update in self:
            if self.recompute and torch.is_grad_enabled():
                output = checkpoint(update, features, kernels, masks, use_reentrant=False)
            else:
                output = update(features, kernels, masks)
            outputs.append(output)
            kernels, masks = outputs[-1].kernels, outputs[-1].masks
        return outputs
