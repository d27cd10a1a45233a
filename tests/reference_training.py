"""K-Net's training as published, written out: targets, matching and losses (section 3.5).

Beside `reference.py`, with the same notation. The initial masks and every round are enlarged,
matched and judged one after the other, with loops over images, objects and stuff classes, and the
targets of all B * (N + S) masks are built, most of them empty.

G objects and P stuff classes in an image; h, w is a quarter of the padded input (the stride of the
losses, 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

IGNORED = 255
# published factors of the losses and of the matching costs
LOSS_WEIGHTS = {"cls": 2.0, "mask": 1.0, "dice": 4.0, "rank": 0.1, "seg": 1.0}
COST_WEIGHTS = {"cls": 2.0, "mask": 1.0, "dice": 4.0}


class GroundTruth(NamedTuple):
    """One image: labels (G,) in [0, T), soft masks (G, h, w); stuff (P,) in [0, S), (P, h, w)."""

    labels: Tensor
    masks: Tensor
    stuff_labels: Tensor
    stuff_masks: Tensor


def soft_masks(masks: Tensor, padded_size: Sequence[int], stride: int) -> Tensor:
    """Binary masks (n, H, W), padded with zeros and resized to 1 / stride; soft at borders."""
    height, width = padded_size
    masks = F.pad(masks.float(), (0, width - masks.shape[2], 0, height - masks.shape[1]))
    size = (height // stride, width // stride)
    if not len(masks):
        return masks.new_zeros((0, *size))
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


def ground_truth(
    labels: Tensor,
    masks: Tensor,
    sem_seg: Tensor | None,
    stuff_ids: Sequence[int],
    padded_size: Sequence[int],
    stride: int = 4,
) -> GroundTruth:
    """Targets of one image.

    Args:
        labels, masks: (G,) and boolean (G, H, W) of its objects.
        sem_seg: (H, W) labels, of which `stuff_ids[j]` is stuff class j; or None.
        padded_size: (height, width) of the batch.
        stride: of the losses.
    """
    present, stuff = [], []
    for j, label in enumerate(stuff_ids):
        if sem_seg is not None and (sem_seg == label).any():
            present.append(j)
            stuff.append(sem_seg == label)
    stuff_masks = torch.stack(stuff) if stuff else masks.new_zeros((0, *masks.shape[1:]))
    return GroundTruth(
        labels,
        soft_masks(masks, padded_size, stride),
        torch.tensor(present, dtype=torch.int64, device=labels.device),
        soft_masks(stuff_masks, padded_size, stride),
    )


# ---- matching


@torch.no_grad()
def matching_cost(
    class_logits: Tensor | None, mask_logits: Tensor, labels: Tensor, masks: Tensor
) -> Tensor:
    """(N, G) of class logits (N, T) or None, masks (N, h, w), and objects (G,), (G, h, w)."""
    p = mask_logits.sigmoid()
    agreement = torch.einsum("nhw,ghw->ng", p, masks)
    agreement = agreement + torch.einsum("nhw,ghw->ng", 1 - p, 1 - masks)
    mask_cost = -agreement / masks[0].numel()
    flat, flat_masks = p.flatten(1), masks.flatten(1)
    overlap = torch.einsum("np,gp->ng", flat, flat_masks)
    size = (flat * flat).sum(1)[:, None] + 1e-3 + (flat_masks * flat_masks).sum(1) + 1e-3
    cost = COST_WEIGHTS["mask"] * mask_cost - COST_WEIGHTS["dice"] * 2 * overlap / size
    if class_logits is not None:
        q = class_logits.sigmoid()
        positive = -(q + 1e-12).log() * 0.25 * (1 - q) ** 2
        negative = -(1 - q + 1e-12).log() * 0.75 * q**2
        cost = cost + COST_WEIGHTS["cls"] * (positive - negative)[:, labels]
    return cost


def match(
    class_logits: Tensor | None, mask_logits: Tensor, labels: Tensor, masks: Tensor
) -> tuple[Tensor, Tensor]:
    """Hungarian matching: indices of kernels and of their objects; surplus objects are dropped."""
    if not len(labels):
        return labels.new_zeros(0), labels.new_zeros(0)
    cost = matching_cost(class_logits, mask_logits, labels, masks)
    kernels, objects = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(kernels).to(labels.device), torch.as_tensor(objects).to(labels.device)


# ---- losses


def focal_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over (M, K) logits; label K is background."""
    num_classes = logits.shape[1]
    target = F.one_hot(labels, num_classes + 1)[:, :num_classes].to(logits.dtype)
    p = logits.sigmoid()
    distance = (1 - p) * target + p * (1 - target)
    factor = (0.25 * target + 0.75 * (1 - target)) * distance**2
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * factor
    return (loss if weights is None else loss * weights).sum()


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over (M, h, w) masks."""
    p, t = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = (p * t).sum(1)
    return (1 - 2 * overlap / ((p * p).sum(1) + 1e-3 + (t * t).sum(1) + 1e-3)).mean()


def rank_loss(masks: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy over the kernels: at every pixel, the mask that covers it ranks highest.

    Where several do, the last one counts; averaged over all pixels, covered or not.
    """
    owner = torch.full((len(masks), *masks.shape[2:]), IGNORED, device=masks.device)
    for b in range(len(masks)):
        for n in positive[b].nonzero()[:, 0].tolist():
            owner[b][targets[b, n] > 0] = n
    return F.cross_entropy(masks, owner, ignore_index=IGNORED, reduction="none").mean()


def mask_losses(
    masks: Tensor, targets: Tensor, positive: Tensor, *, with_rank: bool
) -> dict[str, Tensor]:
    """Losses of enlarged masks and targets (B, n, h, w), of which (B, n) are `positive`."""
    if not positive.any():
        zero = masks.sum() * 0
        return {"mask": zero, "dice": zero, **({"rank": zero} if with_rank else {})}
    chosen, wanted = masks[positive], targets[positive]
    losses = {
        "mask": F.binary_cross_entropy_with_logits(chosen, wanted),
        "dice": dice_loss(chosen, wanted),
    }
    if with_rank:
        losses["rank"] = rank_loss(masks, targets, positive)
    return losses


def thing_targets(
    matches: Sequence[tuple[Tensor, Tensor]], truth: Sequence[GroundTruth], masks: Tensor, void: int
) -> tuple[Tensor, Tensor]:
    """Labels (B, N), `void` where nothing is matched, and masks (B, N, h, w)."""
    labels = torch.full(masks.shape[:2], void, device=masks.device)
    targets = torch.zeros_like(masks)
    for b, (kernels, objects) in enumerate(matches):
        labels[b, kernels] = truth[b].labels[objects]
        targets[b, kernels] = truth[b].masks[objects]
    return labels, targets


def initial_losses(
    masks: Tensor,
    seg_logits: Tensor,
    truth: Sequence[GroundTruth],
    num_thing_classes: int,
    *,
    with_rank: bool,
) -> dict[str, Tensor]:
    """Of the first masks of things (B, N, h, w) and the semantic logits (B, K, h, w), enlarged."""
    matches = [match(None, m.detach(), t.labels, t.masks) for m, t in zip(masks, truth)]
    void = seg_logits.shape[1]
    labels, targets = thing_targets(matches, truth, masks, void)
    losses = mask_losses(masks, targets, labels < void, with_rank=with_rank)
    seg_labels = torch.full((len(masks), *masks.shape[2:]), void, device=masks.device)
    for b, t in enumerate(truth):  # stuff first, matched things over it
        for label, mask in zip(t.stuff_labels, t.stuff_masks):
            seg_labels[b][mask > 0] = label + num_thing_classes
        for n in (labels[b] < void).nonzero()[:, 0].tolist():
            seg_labels[b][targets[b, n] > 0] = labels[b, n]
    seg_labels = seg_labels.flatten()
    divisor = (seg_labels < void).sum().clamp(min=1)
    losses["seg"] = focal_loss(seg_logits.permute(0, 2, 3, 1).flatten(0, 2), seg_labels) / divisor
    return losses


def round_losses(
    class_logits: Tensor,
    masks: Tensor,
    previous: tuple[Tensor | None, Tensor],
    truth: Sequence[GroundTruth],
    num_thing_classes: int,
    *,
    with_rank: bool,
) -> dict[str, Tensor]:
    """Of one round, matched on the class logits and enlarged masks of the round before."""
    void = class_logits.shape[2]
    num_stuff = void - num_thing_classes
    num_things = masks.shape[1] - num_stuff
    matches = []
    for b, t in enumerate(truth):
        logits = previous[0]
        if logits is not None:
            logits = logits[b, :num_things, :num_thing_classes].detach()
        matches.append(match(logits, previous[1][b, :num_things].detach(), t.labels, t.masks))
    labels, targets = thing_targets(matches, truth, masks[:, :num_things], void)
    weights = torch.ones(masks.shape[1], void, device=masks.device)
    if num_stuff:
        # the kernel of stuff class j is judged on that class alone, things on thing classes
        stuff_labels = labels.new_full((len(masks), num_stuff), void)
        stuff_targets = torch.zeros_like(masks[:, num_things:])
        for b, t in enumerate(truth):
            stuff_labels[b, t.stuff_labels] = t.stuff_labels + num_thing_classes
            stuff_targets[b, t.stuff_labels] = t.stuff_masks
        labels = torch.cat([labels, stuff_labels], dim=1)
        targets = torch.cat([targets, stuff_targets], dim=1)
        weights[:, num_thing_classes:] = 0
        weights[num_things:] = 0
        weights[num_things:, num_thing_classes:] = torch.eye(num_stuff, device=masks.device)
    positive = labels < void
    losses = mask_losses(masks, targets, positive, with_rank=with_rank)
    classes = focal_loss(
        class_logits.flatten(0, 1), labels.flatten(), weights.repeat(len(masks), 1)
    )
    losses["cls"] = classes / positive.sum().clamp(min=1)
    return losses


def double(maps: Tensor) -> Tensor:
    """To the resolution of the losses."""
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


def losses(
    start: tuple,
    rounds: Sequence[tuple],
    truth: Sequence[GroundTruth],
    num_thing_classes: int,
    *,
    with_rank: bool,
) -> dict[str, Tensor]:
    """All losses of instance and panoptic models, weighted, named as `KNetCriterion` names them.

    Args:
        start, rounds: as `reference.heads` gives them.
        truth: one an image.
        num_thing_classes: T.
        with_rank: panoptic models.
    """
    num_things = start.masks.shape[1] - (start.seg_logits.shape[1] - num_thing_classes)
    first = double(start.masks[:, :num_things])
    of_start = initial_losses(
        first, double(start.seg_logits), truth, num_thing_classes, with_rank=with_rank
    )
    total = {f"loss_init_{name}": LOSS_WEIGHTS[name] * loss for name, loss in of_start.items()}
    previous = (None, first)
    for s, r in enumerate(rounds, start=1):
        masks = double(r.masks)
        of_round = round_losses(
            r.class_logits, masks, previous, truth, num_thing_classes, with_rank=with_rank
        )
        for name, loss in of_round.items():
            total[f"loss_round{s}_{name}"] = LOSS_WEIGHTS[name] * loss
        previous = (r.class_logits, masks)
    return total


def semantic_losses(start: tuple, rounds: Sequence[tuple], labels: Tensor) -> dict[str, Tensor]:
    """Semantic models: cross-entropy at the size of the labels (B, H, W), of which 255 counts 0.

    Averaged over all pixels, those with 255 among them.
    """
    total = {}
    for s, masks in enumerate([start.masks, *(r.masks for r in rounds)]):
        large = F.interpolate(masks, size=labels.shape[1:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(large, labels, ignore_index=IGNORED, reduction="none").mean()
        total[f"loss_round{s}_seg" if s else "loss_init_seg"] = loss
    return total
