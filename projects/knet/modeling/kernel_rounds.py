"""The chain of update rounds."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from knet.modeling.kernel_update import RoundOutput, UpdateRound


class KernelRounds(nn.ModuleList):
    """S rounds without shared weights; each starts from the kernels and masks of the one before.

    Args:
        rounds: the rounds in order.
    """

    def __init__(self, rounds: Iterable[UpdateRound]) -> None:
        super().__init__(rounds)
        if not len(self):
            raise ValueError("K-Net needs at least one update round: see MODEL.KNET.NUM_ROUNDS")

    def forward(self, features: Tensor, kernels: Tensor, masks: Tensor) -> list[RoundOutput]:
        """Features (B, C, H, W), kernels (B, N, C), masks (B, N, H, W) -> every round's output."""
        outputs = []
        for update in self:
            outputs.append(update(features, kernels, masks))
            kernels, masks = outputs[-1].kernels, outputs[-1].masks
        return outputs
