"""What a model says of one image before it is brought to the image's original size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from knet.modeling.resize import MaskResizer

_MASKS_AT_A_TIME = 64  # thousands of them at once would take gigabytes


@dataclass
class Frame:
    """Sizes of an image, (height, width) each.

    Attributes:
        padded_size: of the batch that it was part of, which the masks' grid covers.
        image_size: of the image in that batch.
    """

    padded_size: Sequence[int]
    image_size: Sequence[int]

    def resizer(
        self,
        grid_size: Sequence[int],
        output_size: Sequence[int],
        device: torch.device,
        **arguments: int,
    ) -> MaskResizer:
        """Brings maps on a grid over the padded batch to the image at `output_size`.

        Args:
            grid_size, output_size, device, arguments: of `MaskResizer`.
        """
        return MaskResizer(
            grid_size=grid_size,
            padded_size=self.padded_size,
            image_size=self.image_size,
            output_size=output_size,
            device=device,
            **arguments,
        )


@dataclass
class MaskPredictions:
    """Kernels of an instance or panoptic model on one image: N things, then S stuff classes.

    Attributes:
        class_scores: (N + S, T + S) in [0, 1].
        masks: (N + S, h, w) over the padded batch.
        frame: sizes of the image.
        upsample: bilinear enlargement of the masks to the grid that results are read from.
        are_logits: whether masks are logits, whose sigmoid follows the enlargement, or
            probabilities.
        kernels: (N + S, C) of the last round, by which objects are known again in other pictures;
            None where the masks are a mean of several looks.
    """

    class_scores: Tensor
    masks: Tensor
    frame: Frame
    upsample: int = 1
    are_logits: bool = True
    kernels: Tensor | None = None

    @property
    def grid_size(self) -> tuple[int, int]:
        """(height, width) of the grid that `probabilities` gives."""
        height, width = self.masks.shape[-2:]
        return height * self.upsample, width * self.upsample

    def probabilities(self, kernels: Sequence[int]) -> Tensor:
        """(n, h * upsample, w * upsample) of some kernels, on the grid over the padded batch."""
        first, count = (kernels[0], len(kernels)) if len(kernels) else (0, 0)
        # neighbours without a list of indices, which would have to be copied to a GPU
        neighbours = list(kernels) == list(range(first, first + count))
        masks = self.masks[slice(first, first + count) if neighbours else list(kernels)].float()
        if self.upsample > 1 and len(masks):
            masks = F.interpolate(
                masks[None], scale_factor=self.upsample, mode="bilinear", align_corners=False
            )[0]
        return masks.sigmoid() if self.are_logits else masks

    def mask_quality(self) -> Tensor:
        """(N + S,) the mean probability inside each mask, where it is at least 1/2; 0 if nowhere.

        It is taken where the masks were predicted, before any enlargement, from the cells that
        the image reaches: an enlarged mask would have to be looked at twice, and as enlarging is
        linear its mean is nearly the same.
        """
        # no slices, which an exported graph would take for shorter than the whole
        sides = zip(self.masks.shape[-2:], self.frame.image_size, self.frame.padded_size)
        rows, columns = (
            torch.arange(cells, device=self.masks.device) * padded < cells * image
            for cells, image, padded in sides
        )
        reached = rows[:, None] & columns
        means = []
        for masks in self.masks.split(_MASKS_AT_A_TIME):
            probabilities = masks.float().sigmoid() if self.are_logits else masks.float()
            inside = (probabilities >= 0.5) & reached
            sums = (probabilities * inside).sum((1, 2))
            means.append(sums / inside.sum((1, 2)).clamp(min=1))
        return torch.cat(means)


@dataclass
class PixelPredictions:
    """Class logits of a semantic model on one image.

    Attributes:
        logits: (K, h, w) over the padded batch.
        frame: sizes of the image.
    """

    logits: Tensor
    frame: Frame

    @torch.no_grad()
    def probabilities(self, output_size: Sequence[int]) -> Tensor:
        """(K, H, W) at `output_size`: the resized logits' softmax over the classes."""
        with torch.autocast(self.logits.device.type, enabled=False):
            height, width = self.frame.image_size
            logits = _resized(self.logits.float(), self.frame.padded_size)[:, :height, :width]
            logits = _resized(logits, output_size)
            if logits.data_ptr() == self.logits.data_ptr():
                logits = logits.clone()
            # a softmax in place: with many classes these maps are the largest of all
            logits.sub_(logits.amax(dim=0)).exp_()
            return logits.div_(logits.sum(dim=0))


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
