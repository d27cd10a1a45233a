"""Ground truth at the resolution of the losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# label of pixels without a class
IGNORE_LABEL = 255


@dataclass
class ImageTargets:
    """Targets of one image; h, w is the padded batch size divided by the loss stride.

    Attributes:
        thing_labels: (G,) int64 in [0, T).
        thing_masks: (G, h, w) float in [0, 1]; soft at borders.
        stuff_labels: (P,) int64 in [0, S), ascending; the stuff classes that the image holds.
        stuff_masks: (P, h, w) float in [0, 1].
    """

    thing_labels: Tensor
    thing_masks: Tensor
    stuff_labels: Tensor
    stuff_masks: Tensor


def shrink_masks(masks: Tensor, factor: int) -> Tensor:
    """Bilinear reduction by an integer factor, written as the mean of the pixels it samples.

    For an even factor, bilinear interpolation (align_corners=False, no antialiasing) reads the
    inner 2x2 pixels of each block; for an odd one the middle pixel. The sums are exact.

    Args:
        masks: boolean (N, H, W); H and W divisible by `factor`.
        factor: at least 1.

    Returns:
        float32 (N, H / factor, W / factor).
    """
    start, odd = divmod(factor, 2)
    if odd:
        return masks[:, start::factor, start::factor].float()
    rows = [masks[:, offset::factor] for offset in (start - 1, start)]
    inner = [row[:, :, offset::factor] for row in rows for offset in (start - 1, start)]
    return torch.stack(inner).sum(0, dtype=torch.uint8).float() / 4


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
    height, width = padded_size

    def reduce(masks: Tensor) -> Tensor:
        padding = (0, width - masks.shape[-1], 0, height - masks.shape[-2])
        return shrink_masks(F.pad(masks.to(device, non_blocking=True), padding), stride)

    if sem_seg is None or not len(stuff_ids):
        stuff_labels = torch.zeros(0, dtype=torch.int64)
        stuff_masks = thing_masks.new_zeros((0, *thing_masks.shape[-2:]))
    else:
        # labels and ids lie on the CPU, so asking which classes occur waits for no GPU
        occurring = torch.bincount(sem_seg.flatten(), minlength=int(stuff_ids.max()) + 1) > 0
        stuff_labels = occurring[stuff_ids].nonzero()[:, 0]
        stuff_masks = sem_seg == stuff_ids[stuff_labels][:, None, None]
    return ImageTargets(
        thing_labels=thing_labels.to(device, non_blocking=True),
        thing_masks=reduce(thing_masks),
        stuff_labels=stuff_labels.to(device, non_blocking=True),
        stuff_masks=reduce(stuff_masks),
    )


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
