"""Losses of the initial kernels and of every update round."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from knet.modeling.kernel_head import InitialKernels
from knet.modeling.kernel_update import RoundOutput
from knet.modeling.precision import at_least_float32
from knet.training.enlarged import enlarged_sums
from knet.training.losses import (
    class_focal_loss,
    paint_owners,
    pixel_focal_loss,
    world_mean_divisors,
)
from knet.training.matcher import MaskMatcher, Matches
from knet.training.pixels import AllPixels, Pixels
from knet.training.targets import ImageTargets


@dataclass(frozen=True)
class LossWeights:
    """Factors of the loss terms; a rank weight of 0 leaves that loss out."""

    classes: float = 2.0
    mask: float = 1.0
    dice: float = 4.0
    rank: float = 0.1
    seg: float = 1.0


class Rows(NamedTuple):
    """The masks of one image that have a target: M matched things, then present stuff.

    Attributes:
        kernel: (M,) int64.
        target: (M,) int64 index into the image's target masks.
        label: (M,) int64 in [0, T + S).
    """

    kernel: Tensor
    target: Tensor
    label: Tensor


def _class_logits(output: RoundOutput) -> Tensor:
    if output.class_logits is None:
        raise ValueError("instance and panoptic losses need rounds with a class branch")
    return output.class_logits


class KNetCriterion:
    """Matches predictions to targets and computes all losses (K-Net §3.5).

    Round s is matched on the predictions before it; the initial masks share round 1's matches.

    Args:
        num_thing_classes, num_stuff_classes: T and S.
        matcher: pairs thing kernels and objects.
        weights: factors of the loss terms.
        pixels: where masks are compared with their targets; everywhere by default.
    """

    def __init__(
        self,
        *,
        num_thing_classes: int,
        num_stuff_classes: int,
        matcher: MaskMatcher,
        weights: LossWeights,
        pixels: Pixels | None = None,
    ) -> None:
        self.num_thing_classes = num_thing_classes
        self.num_stuff_classes = num_stuff_classes
        self.num_classes = num_thing_classes + num_stuff_classes
        self.matcher = matcher
        self.weights = weights
        self.pixels = pixels or AllPixels()

    def __call__(
        self,
        initial: InitialKernels,
        rounds: Sequence[RoundOutput],
        targets: Sequence[ImageTargets],
    ) -> dict[str, Tensor]:
        """All losses of a batch, already weighted; their plain sum is the training objective.

        Args:
            initial: output of the kernel head.
            rounds: outputs of the S rounds.
            targets: one an image, all of one size, to which the masks are enlarged.

        Returns:
            `loss_init_{mask,dice,seg}`, `loss_round{s}_{cls,mask,dice}` and, with a rank weight,
            `..._rank`, for s = 1..S; the same names whatever the ground truth.
        """
        with torch.autocast(initial.masks.device.type, enabled=False):
            return self._losses(initial, rounds, targets)

    def _losses(
        self,
        initial: InitialKernels,
        rounds: Sequence[RoundOutput],
        targets: Sequence[ImageTargets],
    ) -> dict[str, Tensor]:
        num_things = initial.masks.shape[1] - self.num_stuff_classes
        size = targets[0].masks.shape[-2:]
        # the initial losses see the learned kernels only; stuff is the semantic loss's there
        masks = [initial.masks[:, :num_things], *(r.masks for r in rounds)]
        matches = self.match(masks, rounds, targets, num_things)
        # index 0 holds the initial masks' rows, index s those of round s
        rows = [self.rows(matches[0], targets, None)]
        rows += [self.rows(m, targets, num_things) for m in matches]
        seg_labels = self.seg_labels(rows[0], targets)
        divisors = self._divisors(rows, seg_labels, len(targets) * self.pixels.count(size))

        objects = torch.cat([t.masks for t in targets])
        firsts = list(itertools.accumulate([0, *(len(t.masks) for t in targets)]))
        losses: dict[str, Tensor] = {}
        names = ["init", *(f"round{s}" for s in range(1, len(rounds) + 1))]
        for i, name in enumerate(names):
            mask_count = divisors["masks"][i]
            cross_entropy, dice = self._mask_sums(masks[i], rows[i], objects, firsts)
            places = mask_count * self.pixels.count(size)
            losses[f"loss_{name}_mask"] = self.weights.mask * cross_entropy / places
            losses[f"loss_{name}_dice"] = self.weights.dice * dice / mask_count
            if self.weights.rank:
                owners = [
                    paint_owners(t.masks, row.target, row.kernel)
                    for t, row in zip(targets, rows[i])
                ]
                rank = self.pixels.owner_sum(masks[i], torch.stack(owners)) / divisors["pixels"]
                losses[f"loss_{name}_rank"] = self.weights.rank * rank
            if i > 0:
                class_logits = at_least_float32(_class_logits(rounds[i - 1]))
                loss = self._class_loss(class_logits, rows[i], num_things)
                losses[f"loss_{name}_cls"] = self.weights.classes * loss / mask_count
        terms = pixel_focal_loss(seg_labels)
        seg = enlarged_sums(initial.seg_logits, size, terms, whole=True)[0] / divisors["seg"]
        losses["loss_init_seg"] = self.weights.seg * seg
        return losses

    @torch.no_grad()
    def match(
        self,
        masks: Sequence[Tensor],
        rounds: Sequence[RoundOutput],
        targets: Sequence[ImageTargets],
        num_things: int,
    ) -> list[list[Matches]]:
        """Matches of every round, one an image: S matchings, solved together.

        Args:
            masks: (B, N or more, h, w) of the initial kernels and of every round.
            rounds: outputs of the S rounds.
            targets: one an image.
            num_things: N.
        """
        before = torch.stack([m[:, :num_things].detach() for m in masks[: len(rounds)]], dim=1)
        # round 1 is matched on masks that have no class yet
        classes = [_class_logits(r)[:, :num_things].detach() for r in rounds[:-1]]
        costs, subsets = [], []
        for b, target in enumerate(targets):
            labels, objects = target.thing_labels, target.thing_masks
            subset = self.matcher.subset(len(labels), num_things)
            if subset is not None:
                labels, objects = labels[subset], objects[subset.to(labels.device)]
            subsets.append(subset)
            objects, logits = self.pixels.for_costs(objects, before[b].flatten(0, 1))
            cost = self.matcher.mask_cost(logits, objects).unflatten(0, before.shape[1:3])
            if classes:
                class_logits = torch.stack([c[b, :, : self.num_thing_classes] for c in classes])
                cost[1:] += self.matcher.class_cost(class_logits, labels)
            costs.append(cost)
        solved = iter(self.matcher.match([cost[s] for s in range(len(rounds)) for cost in costs]))
        return [
            [
                match if subset is None else match._replace(objects=subset[match.objects])
                for subset, match in zip(subsets, solved)
            ]
            for _ in rounds
        ]

    def rows(
        self,
        matches: Sequence[Matches],
        targets: Sequence[ImageTargets],
        stuff_offset: int | None,
    ) -> list[Rows]:
        """Matched things and, behind the `stuff_offset` thing kernels, present stuff."""
        rows = []
        for match, t in zip(matches, targets):
            device = t.masks.device
            kernels, objects = match.kernels.to(device), match.objects.to(device)
            row = Rows(kernels, objects, t.thing_labels[objects])
            if stuff_offset is not None:
                present = torch.arange(len(t.stuff_labels), device=device) + len(t.thing_labels)
                stuff = Rows(
                    t.stuff_labels + stuff_offset, present, t.stuff_labels + self.num_thing_classes
                )
                row = Rows(*(torch.cat(pair) for pair in zip(row, stuff)))
            rows.append(row)
        return rows

    def _mask_sums(
        self, masks: Tensor, rows: Sequence[Rows], objects: Tensor, firsts: Sequence[int]
    ) -> Tensor:
        """(2,): cross-entropy and dice loss of the matched masks of all images together.

        Args:
            masks: (B, N, h, w) logits.
            rows: one an image.
            objects: (G, H, W) target masks of all images, one image after the other.
            firsts: where each image's begin.
        """
        images = torch.cat([torch.full_like(row.kernel, b) for b, row in enumerate(rows)])
        matched = masks[images, torch.cat([row.kernel for row in rows])]
        targets = torch.cat([row.target + first for row, first in zip(rows, firsts)])
        return self.pixels.mask_sums(matched, objects, targets)

    def _divisors(
        self, rows: Sequence[Sequence[Rows]], seg_labels: Tensor, places: int
    ) -> dict[str, Tensor]:
        counts = torch.tensor(
            [places, *(sum(len(row.kernel) for row in stage) for stage in rows)],
            dtype=torch.float32,
            device=seg_labels.device,
        )
        labelled = (seg_labels < self.num_classes).sum().float()
        counts = world_mean_divisors(torch.cat([counts, labelled[None]]))
        return {"pixels": counts[0], "masks": counts[1:-1], "seg": counts[-1]}

    def seg_labels(self, rows: Sequence[Rows], targets: Sequence[ImageTargets]) -> Tensor:
        """(B, h, w) class a pixel; matched things over other objects over stuff, else K."""
        maps = []
        for row, t in zip(rows, targets):
            count = len(t.thing_labels)
            # objects beyond the kernels are not trained as masks, but their pixels have a class
            present = torch.arange(len(t.masks), device=t.masks.device)
            parts = [present[count:], row.target]
            if len(row.target) < count:
                things = present[:count]
                parts.insert(1, things[torch.isin(things, row.target, invert=True)])
            order = torch.cat(parts)
            labels = torch.cat([t.thing_labels, t.stuff_labels + self.num_thing_classes])[order]
            labels = torch.cat([labels, labels.new_full((1,), self.num_classes)])
            rank = torch.arange(len(order), device=present.device)
            maps.append(labels[paint_owners(t.masks, order, rank)])  # index -1 is the background
        return torch.stack(maps)

    def _class_loss(self, class_logits: Tensor, rows: Sequence[Rows], num_things: int) -> Tensor:
        """Thing kernels are judged on thing classes, a stuff kernel on its own class only."""
        batch, num_kernels, num_classes = class_logits.shape
        labels = torch.full(
            (batch, num_kernels), num_classes, dtype=torch.int64, device=class_logits.device
        )
        for label, row in zip(labels, rows):
            label[row.kernel] = row.label
        weights = class_logits.new_zeros(num_kernels, num_classes)
        weights[:num_things, : self.num_thing_classes] = 1
        weights[num_things:, self.num_thing_classes :].fill_diagonal_(1)
        return class_focal_loss(
            class_logits.flatten(0, 1), labels.flatten(), weights.repeat(batch, 1)
        )
