"""Losses of the initial kernels and of every update round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from knet.modeling.kernel_head import InitialKernels
from knet.modeling.kernel_update import RoundOutput
from knet.training.losses import (
    class_focal_loss,
    dice_loss,
    mask_bce_loss,
    paint_owners,
    pixel_focal_loss,
    rank_loss,
    world_mean_divisors,
)
from knet.training.matcher import MaskMatcher, Matches
from knet.training.targets import ImageTargets


@dataclass(frozen=True)
class LossWeights:
    """Factors of the loss terms; a rank weight of 0 leaves that loss out."""

    classes: float = 2.0
    mask: float = 1.0
    dice: float = 4.0
    rank: float = 0.1
    seg: float = 1.0


@dataclass
class _Rows:
    """All masks of a batch that have a target: matched things, then present stuff."""

    image: Tensor  # (M,)
    kernel: Tensor  # (M,)
    label: Tensor  # (M,) in [0, T + S)
    target: Tensor  # (M, h, w)


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
        mask_upsample: factor between the model's masks and the targets.
    """

    def __init__(
        self,
        *,
        num_thing_classes: int,
        num_stuff_classes: int,
        matcher: MaskMatcher,
        weights: LossWeights,
        mask_upsample: int = 2,
    ) -> None:
        self.num_thing_classes = num_thing_classes
        self.num_stuff_classes = num_stuff_classes
        self.num_classes = num_thing_classes + num_stuff_classes
        self.matcher = matcher
        self.weights = weights
        self.mask_upsample = mask_upsample

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
            targets: one an image, at `mask_upsample` times the masks' resolution.

        Returns:
            `loss_init_{mask,dice,seg}`, `loss_round{s}_{cls,mask,dice}` and, with a rank weight,
            `..._rank`, for s = 1..S; the same names whatever the ground truth.
        """
        with torch.autocast(initial.masks.device.type, enabled=False):
            return self._losses(initial, rounds, targets)

    def upsample(self, masks: Tensor) -> Tensor:
        """(B, N, H, W) -> float32 at the targets' resolution."""
        if not masks.numel():  # interpolate refuses it, but the graph must reach every parameter
            height, width = (n * self.mask_upsample for n in masks.shape[-2:])
            return masks.float().sum().expand(*masks.shape[:2], height, width)
        return F.interpolate(
            masks.float(), scale_factor=self.mask_upsample, mode="bilinear", align_corners=False
        )

    def _losses(
        self,
        initial: InitialKernels,
        rounds: Sequence[RoundOutput],
        targets: Sequence[ImageTargets],
    ) -> dict[str, Tensor]:
        num_things = initial.masks.shape[1] - self.num_stuff_classes
        # the initial losses see the learned kernels only; stuff is the semantic loss's there
        masks = [initial.masks[:, :num_things], *(r.masks for r in rounds)]
        # the rank loss needs all masks at full size; without it only matched ones are enlarged
        large = [self.upsample(m) for m in masks] if self.weights.rank else None
        seg_logits = self.upsample(initial.seg_logits)

        matches = self.match(masks, large, rounds, targets, num_things)
        # index 0 holds the initial masks' rows, index s those of round s
        rows = [self._rows(matches[0], targets, None)]
        rows += [self._rows(m, targets, num_things) for m in matches]
        seg_labels = self._seg_labels(rows[0], targets, seg_logits)
        divisors = self._divisors(rows, seg_labels)

        losses: dict[str, Tensor] = {}
        names = ["init", *(f"round{s}" for s in range(1, len(rounds) + 1))]
        for i, name in enumerate(names):
            row, mask_count = rows[i], divisors["masks"][i]
            if large is not None:
                chosen = large[i][row.image, row.kernel]
            else:
                chosen = self.upsample(masks[i][row.image, row.kernel][None])[0]
            pixels = chosen.shape[-2] * chosen.shape[-1]
            bce = mask_bce_loss(chosen, row.target) / (mask_count * pixels)
            losses[f"loss_{name}_mask"] = self.weights.mask * bce
            losses[f"loss_{name}_dice"] = (
                self.weights.dice * dice_loss(chosen, row.target) / mask_count
            )
            if large is not None:
                owners = paint_owners(row.target, row.image, row.kernel, len(targets))
                rank = rank_loss(large[i], owners) / divisors["pixels"]
                losses[f"loss_{name}_rank"] = self.weights.rank * rank
            if i > 0:
                loss = self._class_loss(_class_logits(rounds[i - 1]).float(), row, num_things)
                losses[f"loss_{name}_cls"] = self.weights.classes * loss / mask_count
        seg = pixel_focal_loss(seg_logits, seg_labels) / divisors["seg"]
        losses["loss_init_seg"] = self.weights.seg * seg
        return losses

    @torch.no_grad()
    def match(
        self,
        masks: Sequence[Tensor],
        large: Sequence[Tensor] | None,
        rounds: Sequence[RoundOutput],
        targets: Sequence[ImageTargets],
        num_things: int,
    ) -> list[list[Matches]]:
        """Matches of every round, one an image: S matchings, solved together."""
        costs = []
        for s in range(len(rounds)):
            for b, target in enumerate(targets):
                if large is not None:
                    logits = large[s][b, :num_things].detach()
                else:
                    logits = self.upsample(masks[s][b : b + 1, :num_things].detach())[0]
                class_logits = None
                if s > 0:
                    class_logits = _class_logits(rounds[s - 1])[b, :num_things]
                    class_logits = class_logits[:, : self.num_thing_classes]
                costs.append(
                    self.matcher.cost(class_logits, logits, target.thing_labels, target.thing_masks)
                )
        solved = self.matcher.match(costs)
        return [solved[i : i + len(targets)] for i in range(0, len(solved), len(targets))]

    def _rows(
        self,
        matches: Sequence[Matches],
        targets: Sequence[ImageTargets],
        stuff_offset: int | None,
    ) -> _Rows:
        """Gather matched things and, behind the `stuff_offset` thing kernels, present stuff."""
        image, kernel, label, target = [], [], [], []
        for b, (match, t) in enumerate(zip(matches, targets)):
            device = t.thing_masks.device
            kernels, objects = match.kernels.to(device), match.objects.to(device)
            image.append(torch.full_like(kernels, b))
            kernel.append(kernels)
            label.append(t.thing_labels[objects])
            target.append(t.thing_masks[objects])
            if stuff_offset is not None:
                image.append(torch.full_like(t.stuff_labels, b))
                kernel.append(t.stuff_labels + stuff_offset)
                label.append(t.stuff_labels + self.num_thing_classes)
                target.append(t.stuff_masks)
        return _Rows(torch.cat(image), torch.cat(kernel), torch.cat(label), torch.cat(target))

    def _divisors(self, rows: Sequence[_Rows], seg_labels: Tensor) -> dict[str, Tensor]:
        pixels = seg_labels.numel()
        counts = torch.tensor(
            [pixels, *(len(row.image) for row in rows)],
            dtype=torch.float32,
            device=seg_labels.device,
        )
        labelled = (seg_labels < self.num_classes).sum().float()
        counts = world_mean_divisors(torch.cat([counts, labelled[None]]))
        return {"pixels": counts[0], "masks": counts[1:-1], "seg": counts[-1]}

    def _seg_labels(
        self, rows: _Rows, targets: Sequence[ImageTargets], seg_logits: Tensor
    ) -> Tensor:
        """(B, h, w) class a pixel; matched things over stuff, K where nothing is labelled."""
        num_images = len(targets)
        background = self.num_classes
        things = paint_owners(
            rows.target,
            rows.image,
            torch.arange(len(rows.image), device=rows.image.device),
            num_images,
        )
        padded = torch.cat([rows.label, rows.label.new_full((1,), background)])
        things = padded[things]  # index -1 reads the background
        if not self.num_stuff_classes:
            return things
        image = torch.cat([torch.full_like(t.stuff_labels, b) for b, t in enumerate(targets)])
        stuff = paint_owners(
            torch.cat([t.stuff_masks for t in targets]),
            image,
            torch.cat([t.stuff_labels for t in targets]) + self.num_thing_classes,
            num_images,
        )
        stuff = torch.where(stuff < 0, background, stuff)
        return torch.where(things < background, things, stuff)

    def _class_loss(self, class_logits: Tensor, rows: _Rows, num_things: int) -> Tensor:
        """Thing kernels are judged on thing classes, a stuff kernel on its own class only."""
        batch, num_kernels, num_classes = class_logits.shape
        labels = torch.full(
            (batch, num_kernels), num_classes, dtype=torch.int64, device=class_logits.device
        )
        labels[rows.image, rows.kernel] = rows.label
        weights = class_logits.new_zeros(num_kernels, num_classes)
        weights[:num_things, : self.num_thing_classes] = 1
        weights[num_things:, self.num_thing_classes :].fill_diagonal_(1)
        return class_focal_loss(
            class_logits.flatten(0, 1), labels.flatten(), weights.repeat(batch, 1)
        )
