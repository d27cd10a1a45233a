"""All losses of instance and panoptic models: matching, targets and formulas (K-Net §3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from knet.modeling.layers import at_least_float32, to_device
from knet.modeling.losses import AllPixels, Places, class_focal_sum, enlarge, world_mean_divisors
from knet.modeling.matcher import MaskMatcher, Matches
from knet.modeling.outputs import InitialKernels, KernelGroup, RoundOutput
from knet.modeling.peaks import centre_focal_sum, centre_targets
from knet.modeling.targets import BatchTargets, Rows, paint_masks

__all__ = ["KNetCriterion", "LossWeights"]


@dataclass(frozen=True)
class LossWeights:
    """Factors of the loss terms; published values."""

    classes: float = 2.0
    mask: float = 1.0
    dice: float = 4.0
    rank: float = 0.1
    seg: float = 1.0
    peak: float = 1.0
    extra: float = 1.0  # of all terms of kernels that only training has


class Stage(NamedTuple):
    """Kernels before or after a round, which losses compare with their targets.

    Attributes:
        name: in the names of the losses.
        group: which the kernels are of.
        masks: (B, N, h, w) logits.
        class_logits: (B, N, K); None before the first round.
        rows: the kernels that have a target.
    """

    name: str
    group: KernelGroup
    masks: Tensor
    class_logits: Tensor | None
    rows: Rows


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
            `..._rank`, for s = 1..S; with a heat map `loss_init_peak`; of a group of kernels that
            only training has `loss_{name}_round{s}_{cls,mask,dice}` and, if it is matched,
            `loss_{name}_init_{mask,dice}`; the same names whatever the ground truth.
        """
        with torch.autocast(initial.masks.device.type, enabled=False):
            return self._losses(initial, rounds, targets)

    def _losses(
        self, initial: InitialKernels, rounds: Sequence[RoundOutput], targets: BatchTargets
    ) -> dict[str, Tensor]:
        num_things = initial.masks.shape[1] - self.num_stuff_classes
        # the initial losses see the learned kernels only; stuff is the semantic loss's there
        own = KernelGroup("", initial.masks[:, :num_things], rounds)
        groups = [own, *(group for group in initial.groups if group.rows is None)]
        matches = self.match(groups, targets)
        rows = self.rows(matches, targets, num_things)
        stages = [stage for pair in zip(groups, rows) for stage in _stages(*pair)]
        for group in initial.groups:
            if group.rows is not None:
                stages += _stages(group, [group.rows] * len(group.rounds))
        seg_labels = self.seg_labels(matches[0][0], targets)
        size = seg_labels.shape[-2:]
        places = len(seg_labels) * self.places.count(size)
        objects = sum(map(len, targets.things))
        counts = [places, objects, *(len(stage.rows.kernel) for stage in stages)]
        divisors = self._divisors(counts, seg_labels)

        losses: dict[str, Tensor] = {}
        for stage, mask_count in zip(stages, divisors[2:-1]):
            name, logits, row = stage.name, stage.masks, stage.rows
            factor = 1.0 if stage.group is own else self.weights.extra
            matched = logits[row.image, row.kernel]
            cross_entropy, dice = self.places.mask_sums(matched, targets.masks, row.target)
            pixels = mask_count * self.places.count(size)
            losses[f"loss_{name}_mask"] = factor * self.weights.mask * cross_entropy / pixels
            losses[f"loss_{name}_dice"] = factor * self.weights.dice * dice / mask_count
            if self.weights.rank and stage.group is own:
                owners = self._owners(row, targets.masks, len(logits))
                rank = self.places.owner_sum(logits, owners) / divisors[0]
                losses[f"loss_{name}_rank"] = self.weights.rank * rank
            if stage.class_logits is not None:
                loss = self._class_sum(stage.class_logits, stage)
                losses[f"loss_{name}_cls"] = factor * self.weights.classes * loss / mask_count
        seg = self.places.class_sum(initial.seg_logits, seg_labels) / divisors[-1]
        losses["loss_init_seg"] = self.weights.seg * seg
        if initial.heat is not None:
            peak = self._centre_sum(initial.heat[:, 0], targets) / divisors[1]
            losses["loss_init_peak"] = self.weights.peak * peak
        return losses

    def matched_masks(
        self, initial: InitialKernels, rounds: Sequence[RoundOutput], targets: BatchTargets
    ) -> tuple[Tensor, Tensor]:
        """What the last round says of every object and stuff region, for a loss of one's own.

        Args:
            initial, rounds, targets: what a criterion is called with.

        Returns:
            (M, H, W) logits, and (M, H, W) of the same type: how much of a pixel is in the mask,
            in [0, 1]. H, W are the size of the targets. M may be 0, and differs between processes.
            Matched anew: of more objects than kernels it is a random part of its own.
        """
        num_things = initial.masks.shape[1] - self.num_stuff_classes
        own = KernelGroup("", initial.masks[:, :num_things], rounds)
        row = self.rows(self.match([own], targets), targets, num_things)[0][-1]
        logits = enlarge(rounds[-1].masks[row.image, row.kernel], targets.masks.shape[-2:])
        return logits, targets.masks[row.target].to(logits.dtype)

    def _centre_sum(self, heat: Tensor, targets: BatchTargets) -> Tensor:
        heat, counts = at_least_float32(heat), [len(things) for things in targets.things]
        things = torch.cat(
            [targets.masks[first : first + n] for first, n in zip(targets.firsts, counts)]
        )
        return centre_focal_sum(heat, centre_targets(things, counts, heat.shape[-2:]))

    @torch.no_grad()
    def match(
        self, groups: Sequence[KernelGroup], targets: BatchTargets
    ) -> list[list[list[Matches]]]:
        """Matches of every group and round, one an image: all costs cross in one copy.

        Args:
            groups: the model's own kernels, then others.
            targets: of the batch.
        """
        masks = [_before_rounds(group) for group in groups]
        numbers, num_rounds = [m[0].shape[1] for m in masks], len(groups[0].rounds)
        counts = [len(things) for things in targets.things]
        subsets = [self.matcher.subset(count, numbers[0]) for count in counts]
        if not numbers[0] or not max(counts):
            return [[[Matches.none() for _ in counts] for _ in range(num_rounds)] for _ in groups]
        objects, labels = targets.padded_things()
        before = torch.cat([m[s] for s in range(num_rounds) for m in masks], dim=1)
        cost = self.matcher.mask_cost(self.places.overlaps(before, objects))
        cost = cost.unflatten(1, (num_rounds, sum(numbers)))
        if num_rounds > 1:  # the initial masks have no class yet
            logits = torch.cat(
                [
                    _class_logits(group.rounds[s])[:, :number, : self.num_thing_classes]
                    for s in range(num_rounds - 1)
                    for group, number in zip(groups, numbers)
                ],
                dim=1,
            )
            classes = self.matcher.class_cost(logits, labels)
            cost[:, 1:] += classes.unflatten(1, (num_rounds - 1, sum(numbers)))
        costs = np.split(cost.cpu().numpy(), np.cumsum(numbers)[:-1], axis=2)  # the only wait
        # all groups train the same objects, each of them as often as the next
        chosen = [np.arange(count) if s is None else s for count, s in zip(counts, subsets)]
        columns = [
            [np.tile(o, min(group.repeats, max(1, number // max(1, len(o))))) for o in chosen]
            for group, number in zip(groups, numbers)
        ]
        blocks = [
            cost[b, s][:, of_image]
            for cost, of_group in zip(costs, columns)
            for s in range(num_rounds)
            for b, of_image in enumerate(of_group)
        ]
        solved = iter(self.matcher.match(blocks))
        return [
            [
                [
                    match._replace(objects=of_image[match.objects])
                    for of_image, match in zip(of_group, solved)
                ]
                for _ in range(num_rounds)
            ]
            for of_group in columns
        ]

    def rows(
        self,
        matches: Sequence[Sequence[Sequence[Matches]]],
        targets: BatchTargets,
        num_things: int,
    ) -> list[list[Rows]]:
        """Rows of every group: of its initial masks and of every round.

        Stuff is the own kernels' alone, in the rounds.

        Args:
            matches: of every group and round, one an image.
            targets: of the batch.
            num_things: N of the own kernels.
        """
        tables = [
            self._table(of_round, targets, num_things if not g and s else None)
            for g, of_group in enumerate(matches)
            for s, of_round in enumerate([of_group[0], *of_group])
        ]
        ends = np.cumsum([table.shape[1] for table in tables])[:-1]
        table = to_device(torch.from_numpy(np.concatenate(tables, axis=1)), targets.masks.device)
        rows = [Rows(*part.unbind()) for part in table.tensor_split(ends.tolist(), dim=1)]
        stages = len(rows) // len(matches)
        return [rows[i : i + stages] for i in range(0, len(rows), stages)]

    def _table(
        self, matches: Sequence[Matches], targets: BatchTargets, num_things: int | None
    ) -> np.ndarray:
        """(4, M) of `Rows`: matched things and, with their number, present stuff."""
        parts: list[np.ndarray] = []
        for b, (match, first) in enumerate(zip(matches, targets.firsts)):
            labels = targets.things[b][match.objects]
            parts.append(_row(b, match.kernels, match.objects + first, labels))
            if num_things is not None:
                stuff = targets.stuff[b]
                present = np.arange(len(stuff)) + first + len(targets.things[b])
                parts.append(_row(b, stuff + num_things, present, stuff + self.num_thing_classes))
        return np.concatenate(parts, axis=1)

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
        painted = paint_masks(targets.masks, code, image, len(matches))
        return torch.where(painted < 0, self.num_classes, painted % (self.num_classes + 1))

    def _owners(self, row: Rows, masks: Tensor, batch: int) -> Tensor:
        """(B, h, w) the matched kernel that covers a pixel, the last one of several, else -1."""
        return paint_masks(masks[row.target], row.kernel, row.image, batch)

    def _divisors(self, counts: Sequence[int], seg_labels: Tensor) -> Tensor:
        """Places, objects, masks of every stage and labelled pixels, as `world_mean_divisors`."""
        labelled = (seg_labels < self.num_classes).sum()
        known = to_device(torch.tensor(counts, dtype=torch.float32), seg_labels.device)
        return world_mean_divisors(torch.cat([known, labelled[None].float()]))

    def _class_sum(self, class_logits: Tensor, stage: Stage) -> Tensor:
        """Thing kernels are judged on thing classes, a stuff kernel on its own class only."""
        class_logits, row, group = at_least_float32(class_logits), stage.rows, stage.group
        batch, num_kernels, num_classes = class_logits.shape
        labels = torch.full(
            (batch, num_kernels), num_classes, dtype=torch.int64, device=class_logits.device
        )
        labels[row.image, row.kernel] = row.label
        weights = class_logits.new_zeros(num_kernels, num_classes)
        num_things = num_kernels if group.masks is None else group.masks.shape[1]
        weights[:num_things, : self.num_thing_classes] = 1
        weights[num_things:, self.num_thing_classes :].fill_diagonal_(1)
        if group.rows is not None:  # kernels without a target are no background
            weights = weights * (labels < num_classes)[..., None]
        return class_focal_sum(class_logits, labels, weights)


def _before_rounds(group: KernelGroup) -> list[Tensor]:
    """Masks (B, N, h, w) of the thing kernels that each round starts from."""
    assert group.masks is not None
    number = group.masks.shape[1]
    return [group.masks, *(output.masks[:, :number] for output in group.rounds[:-1])]


def _stages(group: KernelGroup, rows: Sequence[Rows]) -> list[Stage]:
    """Of a group: before the first round, unless masks are given then, and after each."""
    prefix = f"{group.name}_" if group.name else ""
    outputs = [
        (f"{prefix}round{s}", output.masks, _class_logits(output))
        for s, output in enumerate(group.rounds, start=1)
    ]
    before = [] if group.masks is None else [(f"{prefix}init", group.masks, None)]
    return [
        Stage(name, group, masks, class_logits, of_stage)
        for (name, masks, class_logits), of_stage in zip([*before, *outputs], rows)
    ]


def _class_logits(output: RoundOutput) -> Tensor:
    if output.class_logits is None:
        raise ValueError("instance and panoptic losses need rounds with a class branch")
    return output.class_logits


def _row(image: int, *columns: np.ndarray) -> np.ndarray:
    return np.stack([np.full(len(columns[0]), image), *columns])
