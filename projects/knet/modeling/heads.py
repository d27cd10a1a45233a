"""Everything of K-Net behind the backbone as one module: feature maps in, predictions out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from knet.modeling.kernel_head import InitialKernels, KernelHead
from knet.modeling.kernel_rounds import KernelRounds
from knet.modeling.kernel_update import RoundOutput
from knet.modeling.pixel_classifier import PixelClassifier


class KNetHeads(nn.Module):
    """Instance and panoptic models.

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


class SemanticHeads(nn.Module):
    """Semantic models: the rows of a classifier are the initial kernels, one a class (K-Net §3.4).

    The classifier's bias is no part of a kernel, and what dropout zeroes in training is zeroed for
    the first logits only.

    Args:
        kernel_head: classifies pixels for the first time.
        rounds: the update rounds, with soft groups and without class branch.
        auxiliary: classifies pixels of one feature map in training, for its gradient; or None.
        auxiliary_index: which of the feature maps.
    """

    def __init__(
        self,
        *,
        kernel_head: PixelClassifier,
        rounds: KernelRounds,
        auxiliary: PixelClassifier | None = None,
        auxiliary_index: int = -2,
    ) -> None:
        super().__init__()
        self.kernel_head = kernel_head
        self.rounds = rounds
        self.auxiliary = auxiliary
        self.auxiliary_index = auxiliary_index

    def forward(self, features: Sequence[Tensor]) -> tuple[InitialKernels, list[RoundOutput]]:
        """Maps (B, C_i, H_i, W_i), finest first -> initial kernels and every round."""
        pixels, logits = self.kernel_head(features)
        kernels = self.kernel_head.classifier.weight.flatten(1).expand(pixels.shape[0], -1, -1)
        auxiliary = None
        if self.auxiliary is not None and self.training:
            _, auxiliary = self.auxiliary([features[self.auxiliary_index]])
        initial = InitialKernels(pixels, kernels, logits, logits, auxiliary)
        rounds = self.rounds(initial.features, initial.kernels, initial.masks)
        return initial, rounds
