"""Where masks are compared with their targets: at every pixel, or at some sampled points.

Both give the same three things to the criterion: what the matching looks at, the mask losses of
a round and its rank loss. Published models look at every pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from knet.modeling.precision import at_least_float32
from knet.training.chunks import chunks
from knet.training.enlarged import enlarged_sums
from knet.training.losses import mask_losses, owner_loss


class Pixels(Protocol):
    """The places at which masks are compared; see `AllPixels`."""

    def count(self, size: Sequence[int]) -> int: ...

    def for_costs(self, objects: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]: ...

    def mask_sums(self, masks: Tensor, targets: Tensor, rows: Tensor) -> Tensor: ...

    def owner_sum(self, masks: Tensor, owners: Tensor) -> Tensor: ...


class AllPixels:
    """Every pixel of the targets, to whose size the masks are enlarged."""

    def count(self, size: Sequence[int]) -> int:
        """Number of places in an image whose targets have this (height, width)."""
        return size[0] * size[1]

    def for_costs(self, objects: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """What the matching compares: objects (G, H, W) with masks (N, h, w)."""
        return objects, masks

    def mask_sums(self, masks: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """(2,): summed cross-entropy and dice loss.

        Args:
            masks: (M, h, w) logits.
            targets: (G, H, W).
            rows: (M,) the target of each mask.
        """
        terms = mask_losses(lambda part: targets[rows[part]])
        return enlarged_sums(masks, targets.shape[-2:], terms, count=2)

    def owner_sum(self, masks: Tensor, owners: Tensor) -> Tensor:
        """Summed rank loss of (B, N, h, w) logits; owners (B, H, W) as in `owner_loss`."""
        return enlarged_sums(masks, owners.shape[-2:], owner_loss(owners), whole=True)[0]


class SampledPoints:
    """Points of each image and mask, drawn anew at every use (Mask2Former §3.3).

    Costs and the rank loss see points spread evenly; a mask's own losses see points of which a
    share lies where the mask is least certain, found among several times as many.

    Args:
        num_points: for each image, or each mask.
        oversample: candidates for each uncertain point.
        uncertain: share of the uncertain points.
    """

    def __init__(
        self, num_points: int, *, oversample: float = 3.0, uncertain: float = 0.75
    ) -> None:
        self.num_points = num_points
        self.candidates = int(num_points * oversample)
        self.num_uncertain = int(num_points * uncertain)

    def count(self, size: Sequence[int]) -> int:
        """Number of places in an image, whatever the size of the targets."""
        return self.num_points

    def for_costs(self, objects: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """(G, 1, P) and (N, 1, P), at the same points."""
        points = torch.rand(1, self.num_points, 2, device=objects.device)
        return sample(objects, points), sample(masks, points)

    def mask_sums(self, masks: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """As `AllPixels.mask_sums`, over P points of each mask."""
        with torch.no_grad():
            points = self._points(masks.detach())
            wanted = sample(targets[rows], points)
        logits = sample(masks, points)
        terms = mask_losses(lambda part: wanted[part])
        return enlarged_sums(logits, logits.shape[-2:], terms, count=2)

    def owner_sum(self, masks: Tensor, owners: Tensor) -> Tensor:
        """As `AllPixels.owner_sum`, over P points of each image."""
        total = masks.new_zeros(())
        for image, owner in zip(masks, owners):
            points = torch.rand(1, self.num_points, 2, device=masks.device)
            logits = sample(image, points)[None]
            height, width = owner.shape
            column, row = (points[0] * points.new_tensor([width, height])).long().unbind(-1)
            chosen = owner[row.clamp(max=height - 1), column.clamp(max=width - 1)]
            terms = owner_loss(chosen[None, None])
            total = total + enlarged_sums(logits, logits.shape[-2:], terms, whole=True)[0]
        return total

    def _points(self, masks: Tensor) -> Tensor:
        """(M, P, 2) of masks (M, h, w)."""
        rest = self.num_points - self.num_uncertain
        points = torch.rand(len(masks), self.num_points, 2, device=masks.device)
        for part in chunks(len(masks), self.candidates, masks.device):
            drawn = torch.rand(part.stop - part.start, self.candidates, 2, device=masks.device)
            certainty = sample(masks[part], drawn)[:, 0].abs()
            index = certainty.topk(self.num_uncertain, dim=1, largest=False).indices
            points[part, rest:] = drawn.gather(1, index[..., None].expand(-1, -1, 2))
        return points


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps (M, h, w) at points, as float32 (M, 1, P).

    Args:
        maps: of any type.
        points: (M, P, 2), or (1, P, 2) for the same ones in all maps: x and y in [0, 1].
    """
    if not len(maps):
        return at_least_float32(maps.new_zeros((0, 1, points.shape[1])))
    grid = points[:, None] * 2 - 1
    shared = len(points) == 1
    maps = at_least_float32(maps)
    maps = maps[None] if shared else maps[:, None]
    # beyond the outermost pixel centres the edge goes on, as in bilinear enlargement
    values = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    return values[0] if shared else values[:, 0]
