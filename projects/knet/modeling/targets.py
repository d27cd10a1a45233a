"""Ground truth at the resolution of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from knet.modeling.layers import to_device

__all__ = ["BatchTargets"]

IGNORE_LABEL = 255  # of a pixel without a label, in every semantic map that a model is given


class ImageTargets(NamedTuple):
    """Targets of one image, on the CPU; h, w is its size divided by the loss stride, rounded up.

    Attributes:
        thing_labels: (G,) int64 in [0, T).
        stuff_labels: (P,) int64 in [0, S), ascending; the stuff classes that the image holds.
        masks: (G + P, h, w) in [0, 1], soft at borders; things, then stuff. Of any dtype:
            quarters are exact in float16.
    """

    thing_labels: Tensor
    stuff_labels: Tensor
    masks: Tensor

    @property
    def thing_masks(self) -> Tensor:
        """(G, h, w)."""
        return self.masks[: len(self.thing_labels)]

    @property
    def stuff_masks(self) -> Tensor:
        """(P, h, w)."""
        return self.masks[len(self.thing_labels) :]


@dataclass
class BatchTargets:
    """Targets of B images: labels on the CPU, for the matching, and all masks in one tensor.

    Attributes:
        things, stuff: the labels of each image, (G_b,) and (P_b,).
        masks: (sum of G_b + P_b, h, w), image by image, things before stuff.
    """

    things: list[np.ndarray]
    stuff: list[np.ndarray]
    masks: Tensor

    @classmethod
    def collate(
        cls,
        images: Sequence[ImageTargets],
        device: torch.device,
        size: Sequence[int] | None = None,
    ) -> BatchTargets:
        """Targets padded to one size, their masks on a device, copied beside its work.

        Args:
            images: of the batch.
            device: of the model.
            size: (h, w) of the padded batch, divided by the loss stride; that of the first image
                by default. Padding is background, as published.
        """
        first = images[0].masks
        size = first.shape[1:] if size is None else size
        count = sum(len(image.masks) for image in images)
        masks = first.new_zeros((count, *size), pin_memory=device.type == "cuda")
        for part, image in zip(masks.split([len(image.masks) for image in images]), images):
            height, width = image.masks.shape[1:]
            part[:, :height, :width] = image.masks
        return cls(
            [image.thing_labels.numpy() for image in images],
            [image.stuff_labels.numpy() for image in images],
            masks.to(device, non_blocking=True),
        )

    @property
    def firsts(self) -> np.ndarray:
        """(B + 1,) where each image's masks begin, and their number."""
        counts = [len(t) + len(s) for t, s in zip(self.things, self.stuff)]
        return np.cumsum([0, *counts])

    def padded_things(self) -> tuple[Tensor, Tensor]:
        """Masks (B, G, h, w) and labels (B, G) of things, G the largest number; the rest is any."""
        count = max(map(len, self.things))
        # what is behind an image's things are others' masks, or the last mask again
        index = self.firsts[:-1, None] + np.arange(count)
        index = index.clip(max=max(len(self.masks) - 1, 0))
        labels = np.zeros(index.shape, dtype=np.int64)
        for row, things in zip(labels, self.things):
            row[: len(things)] = things
        both = to_device(torch.from_numpy(np.stack([index, labels])), self.masks.device)
        return self.masks[both[0]], both[1]


class Rows(NamedTuple):
    """The kernels of one round that have a target, image by image.

    Attributes:
        image: (M,) int64 in [0, B).
        kernel: (M,) int64, the kernel's number in its image.
        target: (M,) int64 index into `BatchTargets.masks`.
        label: (M,) int64 in [0, T + S).
    """

    image: Tensor
    kernel: Tensor
    target: Tensor
    label: Tensor


def paint_masks(masks: Tensor, values: Tensor, images: Tensor, batch: int) -> Tensor:
    """(B, h, w) int64 of overlapping masks (M, h, w): the highest value of an image's masks wins.

    A pixel is covered where a mask is above 0; -1 where none covers. In between 32 bits are enough.
    """
    painted = torch.where(masks > 0, values[:, None, None].int(), -1)
    empty = painted.new_full((batch, *masks.shape[1:]), -1)
    index = images[:, None, None].expand_as(painted)
    return empty.scatter_reduce_(0, index, painted, "amax").long()


def shrink_masks(masks: Tensor, factor: int, out: Tensor) -> None:
    """Bilinear reduction by an integer factor, written as the mean of the pixels it samples.

    For an even factor, bilinear interpolation (align_corners=False, no antialiasing) reads the
    inner 2x2 pixels of each block; for an odd one the middle pixel. The sums are exact.

    Args:
        masks: boolean (N, H, W).
        factor: at least 1.
        out: (N, h, w), h >= H / factor and w >= W / factor: what lies beyond the masks is 0.
    """
    start, odd = divmod(factor, 2)
    offsets = [start] if odd else [start - 1, start]
    bits = masks.view(torch.uint8)
    count = out.new_zeros(out.shape, dtype=torch.uint8)
    for row in offsets:
        for column in offsets:
            sampled = bits[:, row::factor, column::factor]
            count[:, : sampled.shape[1], : sampled.shape[2]] += sampled
    out.copy_(count)
    if not odd:
        out.mul_(0.25)


def build_targets(
    *,
    thing_labels: Tensor,
    thing_masks: Tensor,
    sem_seg: Tensor | None,
    stuff_ids: Tensor,
    stride: int,
) -> ImageTargets:
    """Soft targets of one image.

    Args:
        thing_labels: (G,) int64 in [0, T).
        thing_masks: boolean (G, H, W) at input resolution, before padding.
        sem_seg: (H, W) int64 label map, or None without stuff classes.
        stuff_ids: (S,) label that each stuff class has in `sem_seg`.
        stride: of the losses.
    """
    stuff_labels = torch.zeros(0, dtype=torch.int64)
    if sem_seg is not None and len(stuff_ids):
        occurring = torch.bincount(sem_seg.flatten(), minlength=int(stuff_ids.max()) + 1) > 0
        stuff_labels = occurring[stuff_ids].nonzero()[:, 0]
    size = [-(-length // stride) for length in thing_masks.shape[1:]]
    masks = torch.empty((len(thing_masks) + len(stuff_labels), *size), dtype=torch.float16)
    targets = ImageTargets(thing_labels, stuff_labels, masks)
    shrink_masks(thing_masks, stride, targets.thing_masks)
    if len(stuff_labels):
        assert sem_seg is not None
        stuff = sem_seg == stuff_ids[stuff_labels][:, None, None]
        shrink_masks(stuff, stride, targets.stuff_masks)
    return targets


def collate_class_maps(maps: Sequence[Tensor], size: Sequence[int], device: torch.device) -> Tensor:
    """Class maps padded to one size on a device, (B, H, W) int64; padding is ignored.

    Args:
        maps: (h, w) of any integer type each, classes or 255.
        size: (H, W) of the padded batch.
        device: of the model; a byte a pixel crosses to it.
    """
    shape, pinned = (len(maps), *size), device.type == "cuda"
    padded = torch.full(shape, IGNORE_LABEL, dtype=torch.uint8, pin_memory=pinned)
    for row, labels in zip(padded, maps):
        row[: labels.shape[0], : labels.shape[1]] = labels
    return padded.to(device, non_blocking=True).long()
