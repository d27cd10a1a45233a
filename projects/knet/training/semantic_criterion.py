"""Losses of semantic models: cross-entropy on the initial and on every round's logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from knet.modeling.kernel_head import InitialKernels
from knet.modeling.kernel_update import RoundOutput
from knet.training.enlarged import enlarged_sums
from knet.training.losses import owner_loss, world_mean_divisors
from knet.training.targets import IGNORE_LABEL


class SemanticCriterion:
    """Pixel-wise cross-entropy at the resolution of the labels.

    Divided by the number of all pixels, of which those to ignore count 0, as published.

    Args:
        weight: factor of the loss of the initial logits and of every round.
        auxiliary_weight: factor of the auxiliary head's loss.
    """

    def __init__(self, *, weight: float = 1.0, auxiliary_weight: float = 0.4) -> None:
        self.weight = weight
        self.auxiliary_weight = auxiliary_weight

    def __call__(
        self, initial: InitialKernels, rounds: Sequence[RoundOutput], targets: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """All losses of a batch, already weighted; their plain sum is the training objective.

        Args:
            initial: first logits, and those of the auxiliary head if there is one.
            rounds: outputs of the S rounds.
            targets: an (H, W) int64 class map each image; 255 is ignored.

        Returns:
            `loss_init_seg`, `loss_round{s}_seg` for s = 1..S and, with an auxiliary head,
            `loss_auxiliary_seg`.
        """
        with torch.autocast(initial.masks.device.type, enabled=False):
            labels = torch.stack(list(targets))
            pixels = world_mean_divisors(
                torch.tensor([labels.numel()], dtype=torch.float32, device=labels.device)
            )[0]

            def loss(logits: Tensor) -> Tensor:
                terms = owner_loss(torch.where(labels == IGNORE_LABEL, -1, labels))
                return enlarged_sums(logits, labels.shape[-2:], terms, whole=True)[0] / pixels

            losses = {"loss_init_seg": self.weight * loss(initial.masks)}
            for s, output in enumerate(rounds, start=1):
                losses[f"loss_round{s}_seg"] = self.weight * loss(output.masks)
            if initial.auxiliary is not None:
                losses["loss_auxiliary_seg"] = self.auxiliary_weight * loss(initial.auxiliary)
            return losses
