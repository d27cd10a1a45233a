"""All losses of semantic models (K-Net §3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from knet.modeling.losses import AllPixels, Places, world_mean_divisors
from knet.modeling.outputs import InitialKernels, RoundOutput
from knet.modeling.targets import IGNORE_LABEL


class SemanticCriterion:
    """Cross-entropy of the initial and of every round's logits, for semantic models (K-Net §3.4).

    Taken at the resolution of the labels and divided by the number of all pixels, of which those
    to ignore count 0, as published.

    Args:
        weight: factor of the loss of the initial logits and of every round.
        auxiliary_weight: factor of the auxiliary head's loss.
        places: computes the sums over the enlarged logits.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        auxiliary_weight: float = 0.4,
        places: Places | None = None,
    ) -> None:
        self.weight = weight
        self.auxiliary_weight = auxiliary_weight
        self.places = places or AllPixels()

    def __call__(
        self, initial: InitialKernels, rounds: Sequence[RoundOutput], targets: Tensor
    ) -> dict[str, Tensor]:
        """All losses of a batch, already weighted; their plain sum is the training objective.

        Args:
            initial: first logits, and those of the auxiliary head if there is one.
            rounds: outputs of the S rounds.
            targets: (B, H, W) int64 class maps; 255 is ignored.

        Returns:
            `loss_init_seg`, `loss_round{s}_seg` for s = 1..S and, with an auxiliary head,
            `loss_auxiliary_seg`.
        """
        with torch.autocast(initial.masks.device.type, enabled=False):
            owners = torch.where(targets == IGNORE_LABEL, -1, targets)
            count = torch.full((1,), targets.numel(), device=targets.device, dtype=torch.float32)
            pixels = world_mean_divisors(count)[0]

            def loss(logits: Tensor) -> Tensor:
                return self.places.owner_sum(logits, owners) / pixels

            losses = {"loss_init_seg": self.weight * loss(initial.masks)}
            for s, output in enumerate(rounds, start=1):
                losses[f"loss_round{s}_seg"] = self.weight * loss(output.masks)
            if initial.auxiliary is not None:
                losses["loss_auxiliary_seg"] = self.auxiliary_weight * loss(initial.auxiliary)
            return losses
