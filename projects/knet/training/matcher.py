"""One-to-one matching of thing kernels to the objects of an image."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from knet.modeling.precision import at_least_float32
from knet.training.chunks import chunks
from knet.training.enlargement import Enlargement

logger = logging.getLogger(__name__)

# larger than any true cost by far, and safe to add up over thousands of rows in float64
_NON_FINITE_COST = 1e6


class Matches(NamedTuple):
    """Matched pairs of one image, on the CPU, in the order of the kernels.

    Attributes:
        kernels: (M,) int64.
        objects: (M,) int64 index into the ground truth.
    """

    kernels: Tensor
    objects: Tensor


class MaskMatcher:
    """Hungarian matching on class, mask and dice cost (K-Net §3.5).

    Args:
        class_weight, mask_weight, dice_weight: factors of the cost terms.
        alpha, gamma: of the focal class cost.
    """

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 1.0,
        dice_weight: float = 4.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.alpha = alpha
        self.gamma = gamma
        self._warned: dict[str, int] = {}

    @torch.no_grad()
    def cost(
        self, class_logits: Tensor | None, mask_logits: Tensor, labels: Tensor, masks: Tensor
    ) -> Tensor:
        """Cost (N, G) of every pair: that of its masks, and of its class unless there is none.

        Args:
            class_logits: (N, T) over thing classes; None before the first round.
            mask_logits, labels, masks: as of `mask_cost` and `class_cost`.
        """
        cost = self.mask_cost(mask_logits, masks)
        return cost if class_logits is None else cost + self.class_cost(class_logits, labels)

    @torch.no_grad()
    def class_cost(self, class_logits: Tensor, labels: Tensor) -> Tensor:
        """(..., T) logits over thing classes, (G,) int64 class of each object -> (..., G)."""
        q = at_least_float32(class_logits).sigmoid()
        positive = -(q + 1e-12).log() * self.alpha * (1 - q).pow(self.gamma)
        negative = -(1 - q + 1e-12).log() * (1 - self.alpha) * q.pow(self.gamma)
        return self.class_weight * (positive - negative)[..., labels]

    @torch.no_grad()
    def mask_cost(self, mask_logits: Tensor, masks: Tensor) -> Tensor:
        """Mask and dice cost of every pair.

        Args:
            mask_logits: (N, h, w), which are enlarged to the objects' masks a few at a time.
            masks: (G, H, W) soft masks in [0, 1].

        Returns:
            (N, G) float32 (float64 of float64 logits).
        """
        enlargement = Enlargement(mask_logits.shape[-2:], masks.shape[-2:])
        everywhere = enlargement.all_lines
        t = enlargement.arrange(masks, everywhere)
        t = t.to(torch.promote_types(mask_logits.dtype, torch.float32))
        pixels = t.shape[1]
        # of every mask: overlap with the objects, sum, sum of squares
        overlap = t.new_empty(len(mask_logits), len(t))
        area, square = overlap.new_empty(2, len(mask_logits), 1)
        for part in chunks(len(mask_logits), pixels, t.device):
            p = enlargement.values(mask_logits[part], everywhere).sigmoid()
            torch.mm(p, t.T, out=overlap[part])
            torch.sum(p, 1, keepdim=True, out=area[part])
            square[part] = torch.linalg.vecdot(p, p)[:, None]
        agreement = 2 * overlap + pixels - area - t.sum(1)  # <p,t> + <1-p,1-t>
        size = square + torch.linalg.vecdot(t, t) + 2e-3
        return -self.mask_weight * agreement / pixels - self.dice_weight * 2 * overlap / size

    def subset(self, num_objects: int, num_kernels: int) -> Tensor | None:
        """Random objects (N,) int64 to train where there are more than kernels, in order.

        Surplus objects are counted and reported; None if there are none.
        """
        if num_objects <= num_kernels:
            return None
        self._warn(
            "crowded",
            f"an image holds {num_objects} objects but the model has {num_kernels} kernels, so "
            "a random subset is trained: raise MODEL.KNET.NUM_KERNELS",
        )
        return torch.randperm(num_objects)[:num_kernels].sort().values

    def match(self, costs: Sequence[Tensor]) -> list[Matches]:
        """Solve every cost matrix (N, G); all of them cross to the CPU in one copy.

        With more objects than kernels the cheapest N pairs are matched and the rest is left out;
        `subset` draws who takes part, so that it is not always the same ones.
        """
        if not costs:
            return []
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        blocks = []
        for cost, block in zip(costs, flat.split([cost.numel() for cost in costs])):
            block = block.double().view(cost.shape)
            finite = block.isfinite()
            if not finite.all():
                self._warn(
                    "non-finite",
                    f"{int((~finite).sum())} of {block.numel()} matching costs are not finite "
                    "because mask or class logits are not: the learning rate may be too high",
                )
                block = torch.where(finite, block, _NON_FINITE_COST)
            blocks.append(block.numpy())
        # SciPy's solver lets other threads run
        with ThreadPoolExecutor(max_workers=min(len(blocks), os.cpu_count() or 1)) as pool:
            solved = list(pool.map(linear_sum_assignment, blocks))
        return [
            Matches(torch.as_tensor(rows), torch.as_tensor(columns)) for rows, columns in solved
        ]

    def _warn(self, kind: str, message: str) -> None:
        # the 1st, 2nd, 4th, 8th, ... time: loud at first, never a flood
        count = self._warned[kind] = self._warned.get(kind, 0) + 1
        if count & (count - 1) == 0:
            logger.warning("%s (seen %d times)", message, count)
