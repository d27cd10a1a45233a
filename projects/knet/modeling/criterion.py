"""All losses of a batch: matching, targets and formulas come together here (K-Net §3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from knet.modeling.kernels import InitialKernels, RoundOutput
from knet.modeling.layers import at_least_float32, to_device
from knet.modeling.losses import AllPixels, Places, class_focal_sum, world_mean_divisors
from knet.modeling.matcher import MaskMatcher, Matches
from knet.modeling.peaks import centre_focal_sum, centre_targets
from knet.modeling.targets import IGNORE_LABEL, BatchTargets


@dataclass(frozen=True)
class LossWeights:
    """Factors of the loss terms; published values."""

    classes: float = 2.0
    mask: float = 1.0
    dice: float = 4.0
    rank: float = 0.1
    seg: float = 1.0
    peak: float = 1.0


class Rows(NamedTuple):
    """The masks of one round that have a target, image by image: matched things, present stuff.

    Attributes:
        image: (M,) int64 in [0, B).
        kernel: (M,) int64 in [0, N + S).
        target: (M,) int64 index into `BatchTargets.masks`.
        label: (M,) int64 in [0, T + S).
    """

    image: Tensor
    kernel: Tensor
    target: Tensor
    label: Tensor


class KNetCriterion:
    """Losses of the initial kernels and of every round, of instance and panoptic models.

    Round s is matched on the predictions before it; the initial masks share round 1's matches.

    Args:
        num_thing_classes, num_stuff_classes: T and S.
        matcher: pairs thing kernels and objects; with the published costs by default.
        weights: factors of the loss terms; as published by default.
        places: where masks are compared with their targets; at every pixel by default.
    """

    def __init__(
        self,
        *,
        num_thing_classes: int,
        num_stuff_classes: int,
        matcher: MaskMatcher | None = None,
        weights: LossWeights | None = None,
        places: Places | None = None,
    ) -> None:
        self.num_thing_classes = num_thing_classes
        self.num_stuff_classes = num_stuff_classes
        self.num_classes = num_thing_classes + num_stuff_classes
        self.matcher = matcher or MaskMatcher()
        self.weights = weights or LossWeights()
        self.places = places or AllPixels()

    def __call__(
        self, initial: InitialKernels, rounds: Sequence[RoundOutput], targets: BatchTargets
    ) -> dict[str, Tensor]:
        """All losses of a batch, already weighted; their plain sum is the training objective.

        Args:
            initial: output of the kernel head.
            rounds: outputs of the S rounds.
            targets: at the size to which the masks are enlarged.

        Returns:
            `loss_init_{mask,dice,seg}`, `loss_round{s}_{cls,mask,dice}` and, with a rank weight,
            `..._rank`, for s = 1..S; with a heat map `loss_init_peak`; the same names whatever the
            ground truth.
        """
        with torch.autocast(initial.masks.device.type, enabled=False):
            return self._losses(initial, rounds, targets)

    def _losses(
        self, initial: InitialKernels, rounds: Sequence[RoundOutput], targets: BatchTargets
    ) -> dict[str, Tensor]:
        num_things = initial.masks.shape[1] - self.num_stuff_classes
        # the initial losses see the learned kernels only; stuff is the semantic loss's there
        masks = [initial.masks[:, :num_things], *(r.masks for r in rounds)]
        matches = self.match(masks, rounds, targets)
        rows = self.rows(matches, targets, num_things)
        seg_labels = self.seg_labels(matches[0], targets)
        size = seg_labels.shape[-2:]
        places = len(seg_labels) * self.places.count(size)
        objects = sum(map(len, targets.things))
        counts = [places, *(len(row.kernel) for row in rows), objects]
        divisors = self._divisors(counts, seg_labels)

        losses: dict[str, Tensor] = {}
        for s, (logits, row) in enumerate(zip(masks, rows)):
            name = f"round{s}" if s else "init"
            mask_count = divisors[1 + s]
            matched = logits[row.image, row.kernel]
            cross_entropy, dice = self.places.mask_sums(matched, targets.masks, row.target)
            pixels = mask_count * self.places.count(size)
            losses[f"loss_{name}_mask"] = self.weights.mask * cross_entropy / pixels
            losses[f"loss_{name}_dice"] = self.weights.dice * dice / mask_count
            if self.weights.rank:
                owners = self._owners(row, targets.masks, len(logits))
                rank = self.places.owner_sum(logits, owners) / divisors[0]
                losses[f"loss_{name}_rank"] = self.weights.rank * rank
            if s:
                loss = self._class_sum(_class_logits(rounds[s - 1]), row, num_things)
                losses[f"loss_{name}_cls"] = self.weights.classes * loss / mask_count
        seg = self.places.class_sum(initial.seg_logits, seg_labels) / divisors[-1]
        losses["loss_init_seg"] = self.weights.seg * seg
        if initial.heat is not None:
            peak = self._centre_sum(initial.heat[:, 0], targets) / divisors[-2]
            losses["loss_init_peak"] = self.weights.peak * peak
        return losses

    def _centre_sum(self, heat: Tensor, targets: BatchTargets) -> Tensor:
        heat, counts = at_least_float32(heat), [len(things) for things in targets.things]
        things = torch.cat(
            [targets.masks[first : first + n] for first, n in zip(targets.firsts, counts)]
        )
        return centre_focal_sum(heat, centre_targets(things, counts, heat.shape[-2:]))

    @torch.no_grad()
    def match(
        self, masks: Sequence[Tensor], rounds: Sequence[RoundOutput], targets: BatchTargets
    ) -> list[list[Matches]]:
        """Matches of every round, one an image: S matchings, whose costs cross in one copy.

        Args:
            masks: (B, N or more, h, w) of the N initial kernels and of every round.
            rounds: outputs of the S rounds.
            targets: of the batch.
        """
        num_rounds, num_things = len(rounds), masks[0].shape[1]
        counts = [len(things) for things in targets.things]
        subsets = [self.matcher.subset(count, num_things) for count in counts]
        if not num_things or not max(counts):
            return [[Matches.none() for _ in counts] for _ in rounds]
        objects, labels = targets.padded_things()
        before = torch.stack([m[:, :num_things] for m in masks[:num_rounds]], dim=1)
        cost = self.matcher.mask_cost(self.places.overlaps(before.flatten(1, 2), objects))
        cost = cost.unflatten(1, (num_rounds, num_things))
        if num_rounds > 1:  # the initial masks have no class yet
            logits = torch.stack([_class_logits(r)[:, :num_things] for r in rounds[:-1]], dim=1)
            logits = logits[..., : self.num_thing_classes].flatten(1, 2)
            classes = self.matcher.class_cost(logits, labels)
            cost[:, 1:] += classes.unflatten(1, (num_rounds - 1, num_things))
        costs = cost.cpu().numpy()  # the only wait for a GPU
        blocks = [
            costs[b, s][:, slice(count) if subset is None else subset]
            for s in range(num_rounds)
            for b, (count, subset) in enumerate(zip(counts, subsets))
        ]
        solved = iter(self.matcher.match(blocks))
        return [
            [
                match if subset is None else match._replace(objects=subset[match.objects])
                for subset, match in zip(subsets, solved)
            ]
            for _ in rounds
        ]

    def rows(
        self, matches: Sequence[Sequence[Matches]], targets: BatchTargets, num_things: int
    ) -> list[Rows]:
        """Rows of the initial masks, which are things alone, and of every round.

        Args:
            matches: of every round, one an image.
            targets: of the batch.
            num_things: N.
        """
        things: list[np.ndarray] = []
        both: list[np.ndarray] = []
        for of_round in matches:
            parts: list[np.ndarray] = []
            for b, (match, first) in enumerate(zip(of_round, targets.firsts)):
                labels = targets.things[b][match.objects]
                parts.append(_row(b, match.kernels, match.objects + first, labels))
                if not both:
                    things.append(parts[-1])
                stuff = targets.stuff[b]
                first += len(targets.things[b])
                present = np.arange(len(stuff)) + first
                parts.append(_row(b, stuff + num_things, present, stuff + self.num_thing_classes))
            both.append(np.concatenate(parts, axis=1))
        tables = [np.concatenate(things, axis=1), *both]
        ends = np.cumsum([table.shape[1] for table in tables])[:-1]
        table = to_device(torch.from_numpy(np.concatenate(tables, axis=1)), targets.masks.device)
        return [Rows(*part.unbind()) for part in table.tensor_split(ends.tolist(), dim=1)]

    def seg_labels(self, matches: Sequence[Matches], targets: BatchTargets) -> Tensor:
        """(B, h, w) class a pixel; matched things over other objects over stuff, else K.

        Args:
            matches: of the initial masks, one an image.
            targets: of the batch.
        """
        codes, images = [], []
        for b, (match, things, stuff) in enumerate(zip(matches, targets.things, targets.stuff)):
            # objects beyond the kernels are not trained as masks, but their pixels have a class
            others = np.setdiff1d(np.arange(len(things)), match.objects)
            order = np.concatenate([np.arange(len(stuff)) + len(things), others, match.objects])
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))
            labels = np.concatenate([things, stuff + self.num_thing_classes])
            codes.append(rank * (self.num_classes + 1) + labels)
            images.append(np.full(len(order), b))
        table = np.stack([np.concatenate(images), np.concatenate(codes)])
        image, code = to_device(torch.from_numpy(table), targets.masks.device).unbind()
        painted = _paint(targets.masks, code, image, len(matches))
        return torch.where(painted < 0, self.num_classes, painted % (self.num_classes + 1))

    def _owners(self, row: Rows, masks: Tensor, batch: int) -> Tensor:
        """(B, h, w) the matched kernel that covers a pixel, the last one of several, else -1."""
        return _paint(masks[row.target], row.kernel, row.image, batch)

    def _divisors(self, counts: Sequence[int], seg_labels: Tensor) -> Tensor:
        """Places, masks of every stage, objects and labelled pixels, as `world_mean_divisors`."""
        labelled = (seg_labels < self.num_classes).sum()
        known = to_device(torch.tensor(counts, dtype=torch.float32), seg_labels.device)
        return world_mean_divisors(torch.cat([known, labelled[None].float()]))

    def _class_sum(self, class_logits: Tensor, row: Rows, num_things: int) -> Tensor:
        """Thing kernels are judged on thing classes, a stuff kernel on its own class only."""
        class_logits = at_least_float32(class_logits)
        batch, num_kernels, num_classes = class_logits.shape
        labels = torch.full(
            (batch, num_kernels), num_classes, dtype=torch.int64, device=class_logits.device
        )
        labels[row.image, row.kernel] = row.label
        weights = class_logits.new_zeros(num_kernels, num_classes)
        weights[:num_things, : self.num_thing_classes] = 1
        weights[num_things:, self.num_thing_classes :].fill_diagonal_(1)
        return class_focal_sum(class_logits, labels, weights)


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


def _class_logits(output: RoundOutput) -> Tensor:
    if output.class_logits is None:
        raise ValueError("instance and panoptic losses need rounds with a class branch")
    return output.class_logits


def _row(image: int, *columns: np.ndarray) -> np.ndarray:
    return np.stack([np.full(len(columns[0]), image), *columns])


def _paint(masks: Tensor, values: Tensor, images: Tensor, batch: int) -> Tensor:
    """(B, h, w) int64 of overlapping masks (M, h, w): the highest value of an image's masks wins.

    A pixel is covered where a mask is above 0; -1 where none covers. In between 32 bits are enough.
    """
    painted = torch.where(masks > 0, values[:, None, None].int(), -1)
    empty = painted.new_full((batch, *masks.shape[1:]), -1)
    index = images[:, None, None].expand_as(painted)
    return empty.scatter_reduce_(0, index, painted, "amax").long()
