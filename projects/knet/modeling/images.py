"""Images of several sizes as one normalised, padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def padded_size(size: Sequence[int], divisibility: int) -> tuple[int, int]:
    """(height, width) rounded up to a multiple."""
    step = max(divisibility, 1)
    height, width = (-(-side // step) * step for side in size)
    return height, width


def normalised_batch(
    images: Sequence[Tensor], mean: Tensor, std: Tensor, size: Sequence[int]
) -> Tensor:
    """Images, padded below and on the right with zeros after they were normalised.

    They are put together where they are, so that a batch crosses to a GPU as one, and as the bytes
    that a loader gives.

    Args:
        images: (C, h, w) each, of one type.
        mean, std: (C, 1, 1), on the device that is wanted.
        size: (H, W) of the batch, at least that of every image.
    """
    height, width = size
    whole = all(tuple(image.shape[-2:]) == (height, width) for image in images)
    first, device = images[0], mean.device
    if whole:
        raw = torch.stack(list(images)) if len(images) > 1 else first[None]
        return (raw.to(device, non_blocking=True) - mean) / std
    pinned = device.type == "cuda" and first.device.type == "cpu"
    shape = (len(images), first.shape[0], height, width)
    raw = torch.zeros(shape, dtype=first.dtype, device=first.device, pin_memory=pinned)
    for row, image in zip(raw, images):
        row[:, : image.shape[1], : image.shape[2]] = image
    batch = (raw.to(device, non_blocking=True) - mean) / std
    if len(images) == 1:
        h, w = first.shape[-2:]
        return F.pad(batch[..., :h, :w], (0, width - w, 0, height - h))
    ends = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64)
    ends = ends.to(device, non_blocking=True)[:, :, None, None]
    rows = torch.arange(height, device=device)[:, None] < ends[:, :1]
    columns = torch.arange(width, device=device) < ends[:, 1:]
    return torch.where(rows & columns, batch, 0)
