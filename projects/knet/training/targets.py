"""Ground truth at the resolution of the losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from knet.training.chunks import chunks

# label of pixels without a class
IGNORE_LABEL = 255


@dataclass
class ImageTargets:
    """Targets of one image; h, w is the padded batch size divided by the loss stride.

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
    for part in chunks(len(masks), masks.shape[-2] * masks.shape[-1], masks.device):
        count = out.new_zeros((part.stop - part.start, *out.shape[1:]), dtype=torch.uint8)
        for row in offsets:
            for column in offsets:
                sampled = bits[part, row::factor, column::factor]
                count[:, : sampled.shape[1], : sampled.shape[2]] += sampled
        out[part] = count
    if not odd:
        out.mul_(0.25)


def build_targets(
    *,
    thing_labels: Tensor,
    thing_masks: Tensor,
    sem_seg: Tensor | None,
    stuff_ids: Tensor,
    padded_size: tuple[int, int],
    stride: int,
    device: torch.device,
) -> ImageTargets:
    """Soft targets of one image (published form: padding counts as background).

    Args:
        thing_labels: (G,) int64 in [0, T).
        thing_masks: boolean (G, H, W) at input resolution, before padding.
        sem_seg: (H, W) int64 label map on the CPU, or None without stuff classes.
        stuff_ids: (S,) label that each stuff class has in `sem_seg`, on the CPU.
        padded_size: (height, width) of the padded batch, divisible by `stride`.
        stride: of the losses.
        device: where the targets are wanted.
    """
    stuff_labels = torch.zeros(0, dtype=torch.int64)
    if sem_seg is not None and len(stuff_ids):
        # labels and ids lie on the CPU, so asking which classes occur waits for no GPU
        occurring = torch.bincount(sem_seg.flatten(), minlength=int(stuff_ids.max()) + 1) > 0
        stuff_labels = occurring[stuff_ids].nonzero()[:, 0]
    count = len(thing_masks) + len(stuff_labels)
    size = [length // stride for length in padded_size]
    targets = ImageTargets(
        thing_labels=thing_labels.to(device, non_blocking=True),
        stuff_labels=stuff_labels.to(device, non_blocking=True),
        masks=torch.empty((count, *size), dtype=torch.float16, device=device),
    )
    shrink_masks(thing_masks.to(device, non_blocking=True), stride, targets.thing_masks)
    if len(stuff_labels):
        assert sem_seg is not None
        labels = stuff_ids[stuff_labels].to(device, non_blocking=True)[:, None, None]
        stuff = sem_seg.to(device, non_blocking=True) == labels
        shrink_masks(stuff, stride, targets.stuff_masks)
    return targets


def build_semantic_targets(
    sem_seg: Tensor, *, padded_size: tuple[int, int], device: torch.device
) -> Tensor:
    """Class map of one image; padding is ignored.

    Args:
        sem_seg: (H, W) int64, classes or 255.
        padded_size: (height, width) of the padded batch.
        device: where the target is wanted.

    Returns:
        int64 of `padded_size`.
    """
    height, width = padded_size
    padding = (0, width - sem_seg.shape[-1], 0, height - sem_seg.shape[-2])
    return F.pad(sem_seg.to(device, non_blocking=True), padding, value=IGNORE_LABEL)
