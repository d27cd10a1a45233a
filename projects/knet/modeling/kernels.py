"""Everything of K-Net behind the neck, in the order in which it happens (K-Net §3.2 to §3.4).

Kernels convolve the features into masks; each is then updated from the pixels that its mask selects
and from the other kernels, and convolves again: `KernelHead`, then the `UpdateRound`s. The sums
over pixels stand in `grouping`, what becomes of kernels apart from pixels in `updater`, what passes
from one part to the next in `outputs`.

Every round looks at the features through a 1x1 transform of its own, x' = W x + b. Grouping pixels
and convolving them are both linear in x', so the transform is absorbed into the kernels: the sum
over a mask of x' is W (sum of x) + b * area, and k . x' is (W^T k) . x + k . b. The large map is
never transformed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from knet.modeling.grouping import (
    Grouping,
    convolve,
    gather_features,
    gather_transformed,
    hard_groups,
)
from knet.modeling.layers import ConvNormReLU, at_least_float32, group_norm, init_convs
from knet.modeling.outputs import CarriedKernels, InitialKernels, RoundOutput
from knet.modeling.peaks import PeakKernels
from knet.modeling.positions import PlaceEncoding, spread_places
from knet.modeling.targets import BatchTargets
from knet.modeling.updater import KernelInteraction, KernelUpdater

__all__ = ["KNetHeads", "KernelHead", "KernelRounds", "UpdateRound"]


class KernelHead(nn.Module):
    """Convolves learned kernels over the localising map (K-Net §3.2, §3.4).

    Args:
        num_thing_classes, num_stuff_classes: T and S; things come first in the class order.
        num_kernels: N learned thing kernels; 0 in a model of stuff alone.
        hidden_dim: width C.
        norm_groups: of every GroupNorm.
        conv_std: standard deviation of initial convolution weights.
        class_prior: initial probability of every class of the semantic branch.
        places: is added to the features, and the kernels start on places of their own; None, as
            published: kernels are drawn at random.
        peaks: finds the thing kernels of each image, in place of learned ones.
    """

    def __init__(
        self,
        *,
        num_thing_classes: int,
        num_stuff_classes: int,
        num_kernels: int = 100,
        hidden_dim: int = 256,
        norm_groups: int = 32,
        conv_std: float = 0.01,
        class_prior: float = 0.01,
        places: PlaceEncoding | None = None,
        peaks: PeakKernels | None = None,
    ) -> None:
        super().__init__()
        self.num_kernels = num_kernels
        self.num_thing_classes = num_thing_classes
        self.num_stuff_classes = num_stuff_classes
        norm = group_norm(norm_groups)
        self.localise = ConvNormReLU(hidden_dim, hidden_dim, kernel_size=1, norm=norm)
        self.classify = ConvNormReLU(hidden_dim, hidden_dim, kernel_size=1, norm=norm)
        self.init_kernels = (
            nn.Conv2d(hidden_dim, num_kernels, 1, bias=False)
            if num_kernels and peaks is None
            else None
        )
        self.seg_predictor = nn.Conv2d(hidden_dim, num_thing_classes + num_stuff_classes, 1)
        self.places = places if peaks is None else peaks.places
        self.peaks = peaks
        init_convs(self, conv_std)
        if peaks is not None:
            peaks.init_weights(class_prior)
        if self.init_kernels is not None:
            nn.init.normal_(self.init_kernels.weight)
            if places is not None:
                self.init_kernels.weight.data[..., 0, 0] = places.kernels(
                    spread_places(num_kernels)
                )
        nn.init.constant_(self.seg_predictor.get_parameter("bias"), -math.log(1 / class_prior - 1))

    def forward(
        self, localising: Tensor, classifying: Tensor, levels: Sequence[Tensor] = ()
    ) -> InitialKernels:
        """What the neck gives -> the first masks and kernels.

        Args:
            localising, classifying: (B, C, H, W).
            levels: for the rounds; the first kernels gather from the sum of the other two. Their
                groups are hard whatever those of the rounds: things that shared every pixel among
                themselves alone would start from what is stuff.
        """
        localising = self.localise(localising)
        if self.places is not None:
            localising = localising + self.places(localising)
        classifying = self.classify(classifying)
        features = localising + classifying
        seg_logits = self.seg_predictor(classifying)
        heat = None
        if self.peaks is not None:
            kernels, heat = self.peaks(classifying, localising)
            masks = convolve(localising, kernels, kernels.new_zeros(kernels.shape[:2]))
            kernels = kernels + gather_features(features, hard_groups(masks))[0]
        elif self.init_kernels is None:
            masks = seg_logits[:, :0]
            kernels = features.new_zeros((features.shape[0], 0, features.shape[1]))
        else:
            masks = self.init_kernels(localising)
            groups, _ = gather_features(features, hard_groups(masks))
            kernels = self.init_kernels.weight.flatten(1) + groups
        if self.num_stuff_classes:
            # a stuff kernel is its class's row of the classifier; its bias is no part of it
            stuff = self.seg_predictor.weight.flatten(1)[self.num_thing_classes :]
            kernels = torch.cat([kernels, stuff.expand(kernels.shape[0], -1, -1)], dim=1)
            masks = torch.cat([masks, seg_logits[:, self.num_thing_classes :]], dim=1)
        return InitialKernels(
            features, kernels, masks, seg_logits, heat=heat, levels=levels,
            localising=localising if self.training else None,
        )  # fmt: skip


def _projection(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU())


class UpdateRound(nn.Module):
    """One of the S rounds (K-Net §3.3, fig. 3).

    Args:
        num_classes: K of the class branch, or None for no class branch.
        dim: width C.
        num_heads, ffn_dim: of the kernel interaction.
        grouping: turns mask logits into groups: `hard_groups`, `exclusive_groups`, `soft_groups`.
        class_prior: initial probability of every class.
        updater_dim: width of the kernel updater, which must divide C; by default C. With less,
            kernels and group features are split into C / updater_dim parts, updated one by one
            with shared weights and joined again, as in the published semantic models whose
            512-wide kernels pass a 256-wide updater.
        xavier: initialise all matrices Xavier-uniformly, as the published instance and panoptic
            models; otherwise they keep PyTorch's defaults, as the published semantic ones.
        residual_masks: add to the masks of the round before, at first nothing; published: masks are
            made anew. Effect on short trainings (docs/ABLATION.md): scenes -4.1 PQ; of leaving it
            out: nuclei -16.8 AP, photos -4.0 PQ.
    """

    def __init__(
        self,
        *,
        num_classes: int | None,
        dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        grouping: Grouping = hard_groups,
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

    def forward(
        self,
        features: Tensor,
        kernels: Tensor,
        masks: Tensor,
        level: Tensor | None = None,
        grouping: Grouping | None = None,
    ) -> RoundOutput:
        """Update every kernel from the pixels that its mask selects.

        Args:
            features: (B, C, H, W), the same in every round.
            kernels: (B, N, C) of the round before.
            masks: (B, N, H, W) logits of the round before.
            level: (B, C, h, w), of use in a `LevelRound` alone.
            grouping: in place of the round's own.
        """
        groups = self.gather(features, masks, level, grouping or self.grouping)
        with torch.autocast(features.device.type, enabled=False):
            # LayerNorm follows within the updater; its input sums must not pass float16
            kernels = at_least_float32(kernels)
            kernels = self.updater(self._split(groups), self._split(kernels)).flatten(2)
        kernels = self.interaction(kernels)

        class_logits = None
        if self.class_branch is not None and self.class_predictor is not None:
            class_logits = self.class_predictor(self.class_branch(kernels))
        found = self.masks_of(kernels, features)
        if self.residual_masks:
            found = masks + found
        return RoundOutput(class_logits, found, kernels)

    def masks_of(self, kernels: Tensor, features: Tensor) -> Tensor:
        """(B, N, H, W) logits of updated kernels (B, N, C) on any features (B, C, H, W)."""
        transform = self.feature_transform
        mask_kernels = self.mask_predictor(self.mask_branch(kernels))
        return convolve(features, mask_kernels @ transform.weight, mask_kernels @ transform.bias)

    def gather(
        self, features: Tensor, masks: Tensor, level: Tensor | None, grouping: Grouping
    ) -> Tensor:
        """(B, N, C) float32: what every kernel is updated from; arguments as of `forward`."""
        return gather_transformed(features, grouping(masks), self.feature_transform)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, parts, C / parts)."""
        return x.unflatten(2, (self.parts, -1))


class KernelRounds(nn.ModuleList):
    """S rounds without shared weights; each starts from the kernels and masks of the one before.

    Effect of six on short trainings (docs/ABLATION.md): scenes -6.4 PQ, nuclei -3.1 AP,
    photos -0.4 PQ; of three gone through twice: scenes -8.3 PQ, nuclei -3.2 AP, photos -1.5 PQ.

    Args:
        rounds: the S rounds.
        repeats: how often all are gone through one after the other; published: once.
    """

    def __init__(self, rounds: Iterable[UpdateRound] = (), *, repeats: int = 1) -> None:
        super().__init__(rounds)
        self.repeats = repeats

    def forward(
        self,
        features: Tensor,
        kernels: Tensor,
        masks: Tensor,
        levels: Sequence[Tensor] = (),
        given: Iterator[Tensor] | None = None,
        grouping: Grouping | None = None,
    ) -> list[RoundOutput]:
        """Update kernels in every round.

        Args:
            features: (B, C, H, W).
            kernels: (B, N, C).
            masks: (B, N, H, W) logits.
            levels: (B, C, h, w) each, for `LevelRound`s: the s-th of all rounds, with repeats,
                takes number s modulo their count.
            given: masks of which each round gets the next, in place of those of the round before.
            grouping: in place of the rounds' own.

        Returns:
            The output of every round, of S times `repeats`.
        """
        outputs: list[RoundOutput] = []
        for s, update in enumerate([*self] * self.repeats):
            level = levels[s % len(levels)] if levels else None
            masks = masks if given is None else next(given, masks)
            outputs.append(update(features, kernels, masks, level, grouping))
            kernels, masks = outputs[-1].kernels, outputs[-1].masks
        return outputs


class KNetHeads(nn.Module):
    """Instance and panoptic models.

    Args:
        neck: maps a list of feature maps to a localising and a classifying map, and maybe levels.
        kernel_head: yields the initial kernels.
        rounds: the update rounds.
        training_kernels: by name, each makes a `KernelGroup` of the initial kernels, the rounds and
            the targets; see `knet.modeling.training_kernels`.
    """

    def __init__(
        self,
        *,
        neck: nn.Module,
        kernel_head: KernelHead,
        rounds: KernelRounds,
        training_kernels: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.neck = neck
        self.kernel_head = kernel_head
        self.rounds = rounds
        self.training_kernels = nn.ModuleDict(training_kernels)

    def forward(
        self,
        features: Sequence[Tensor],
        targets: BatchTargets | None = None,
        carried: CarriedKernels | None = None,
    ) -> tuple[InitialKernels, list[RoundOutput]]:
        """Pyramid maps (B, C_i, H_i, W_i), finest first -> initial kernels and every round.

        Only with the targets of a training step are there kernels that only training has. Carried
        kernels stand in the place of some of the first ones, with their masks on these features.
        """
        initial = self.kernel_head(*self.neck(features))
        if carried is not None:
            last: Any = self.rounds[-1]
            masks = last.masks_of(carried.kernels, initial.features)
            initial = carried.placed(initial, masks)
        rounds = self.rounds(initial.features, initial.kernels, initial.masks, initial.levels)
        if targets is not None:
            groups = [
                make(initial, self.rounds, targets) for make in self.training_kernels.values()
            ]
            initial = initial._replace(groups=groups)
        return initial, rounds
