"""Images of several sizes as one normalised, padded batch; large ones in overlapping windows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        images: (C, h, w) each.
        mean, std: (C, 1, 1), on the device that is wanted.
        size: (H, W) of the batch, at least that of every image.
    """
    height, width = size
    whole = all(tuple(image.shape[-2:]) == (height, width) for image in images)
    first, device = images[0], mean.device
    pinned = device.type == "cuda" and first.device.type == "cpu"
    if whole:
        raw = torch.stack(list(images)) if len(images) > 1 else first[None]
        raw = raw.pin_memory() if pinned else raw
        return (raw.to(device, non_blocking=True) - mean) / std
    shape = (len(images), first.shape[0], height, width)
    dtype = functools.reduce(torch.promote_types, (image.dtype for image in images))
    raw = torch.zeros(shape, dtype=dtype, device=first.device, pin_memory=pinned)
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


@dataclass(frozen=True)
class SlidingWindow:
    """How an image is cut into windows.

    Attributes:
        size: (height, width) of a window; a larger one is cut to the image.
        stride: (rows, columns) between windows, at most a window.
        batch_size: windows at a time.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    batch_size: int = 1

    @classmethod
    def from_sizes(
        cls, size: Sequence[int], stride: Sequence[int], batch_size: int
    ) -> SlidingWindow | None:
        """Windows of a config; none without a size. The stride is two thirds by default."""
        if not len(size):
            return None
        stride = stride if len(stride) else [max(1, n * 2 // 3) for n in size]
        return cls((size[0], size[1]), (stride[0], stride[1]), batch_size)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side; the last window ends with the image."""
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def slide(image: Tensor, predict: Callable[[Tensor], Tensor], window: SlidingWindow) -> Tensor:
    """Mean of the logits of all windows that cover a pixel.

    Args:
        image: (3, H, W).
        predict: (n, 3, h, w) windows -> (n, K, h, w) logits.
        window: sizes.

    Returns:
        (K, H, W) logits.
    """
    height, width = image.shape[-2:]
    window_h, window_w = min(window.size[0], height), min(window.size[1], width)
    corners = [
        (y, x)
        for y in window_starts(height, window_h, window.stride[0])
        for x in window_starts(width, window_w, window.stride[1])
    ]
    total: Tensor | None = None
    count = image.new_zeros(height, width)
    for start in range(0, len(corners), window.batch_size):
        chunk = corners[start : start + window.batch_size]
        windows = [image[:, y : y + window_h, x : x + window_w] for y, x in chunk]
        logits = predict(torch.stack(windows))
        if total is None:
            total = logits.new_zeros((logits.shape[1], height, width))
        for (y, x), of_window in zip(chunk, logits):
            total[:, y : y + window_h, x : x + window_w] += of_window
            count[y : y + window_h, x : x + window_w] += 1
    assert total is not None  # there is at least one window
    return total.div_(count)
