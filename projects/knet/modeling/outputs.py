"""What passes from one part of the heads to the next, and to the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from knet.modeling.targets import Rows

__all__ = ["InitialKernels", "RoundOutput"]


class InitialKernels(NamedTuple):
    """What the update rounds start from.

    N thing kernels, then S stuff kernels; in a semantic model one kernel a class.

    Attributes:
        features: (B, C, H, W), the map that every round gathers from and convolves.
        kernels: (B, N + S, C).
        masks: (B, N + S, H, W) logits.
        seg_logits: (B, K, H, W) of the semantic branch, K = thing plus stuff classes.
        auxiliary: (B, K, h, w) logits of a semantic model's auxiliary head, in training.
        heat: (B, 1, H, W) logits of object centres, with `PeakKernels`.
        levels: (B, C, h, w) each, which `LevelRound`s gather from in place of `features`.
        localising: (B, C, H, W), the map that learned kernels convolve, in training.
        groups: further kernels that only training has.
    """

    features: Tensor
    kernels: Tensor
    masks: Tensor
    seg_logits: Tensor
    auxiliary: Tensor | None = None
    heat: Tensor | None = None
    levels: Sequence[Tensor] = ()
    localising: Tensor | None = None
    groups: Sequence[KernelGroup] = ()


class CarriedKernels(NamedTuple):
    """Kernels of the last round of one picture from which another one starts.

    Attributes:
        kernels: (B, N + S, C).
        places: (B, N + S) boolean: where they stand in the place of the first kernels.
    """

    kernels: Tensor
    places: Tensor

    def placed(self, initial: InitialKernels, masks: Tensor) -> InitialKernels:
        """The first kernels with these among them; `masks` (B, N + S, H, W) are theirs."""
        kernels = torch.where(self.places[..., None], self.kernels, initial.kernels)
        masks = torch.where(self.places[..., None, None], masks, initial.masks)
        return initial._replace(kernels=kernels, masks=masks)


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


class KernelGroup(NamedTuple):
    """Kernels that went through the rounds among themselves, and what they are trained on.

    Attributes:
        name: in the names of its losses; the model's own kernels have none.
        masks: (B, N, H, W) logits of thing kernels before the rounds; None if they are given.
        rounds: outputs of the S rounds.
        repeats: how many kernels are matched with an object, if there are enough.
        rows: the kernels' objects, where they are fixed; other kernels are then not trained. None:
            they are matched.
    """

    name: str
    masks: Tensor | None
    rounds: Sequence[RoundOutput]
    repeats: int = 1
    rows: Rows | None = None
