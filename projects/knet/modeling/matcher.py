"""One-to-one matching of thing kernels to the objects of an image (K-Net §3.5)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from knet.modeling.layers import at_least_float32
from knet.modeling.losses import Overlaps

__all__ = ["MaskMatcher"]

logger = logging.getLogger(__name__)

# larger than any true cost by far, and safe to add up over thousands of rows in float64
_NON_FINITE_COST = 1e6


class Matches(NamedTuple):
    """Matched pairs of one image, on the CPU, in the order of the kernels.

    Attributes:
        kernels: (M,) int64.
        objects: (M,) int64 index into the ground truth.
    """

    kernels: np.ndarray
    objects: np.ndarray

    @classmethod
    def none(cls) -> Matches:
        """No pair."""
        return cls(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


class MaskMatcher:
    """Hungarian matching on class, mask and dice cost.

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

    def mask_cost(self, overlaps: Overlaps) -> Tensor:
        """(B, N, G) mask and dice cost of every pair of kernel and object."""
        inner, places = overlaps.inner, overlaps.places
        # <p,t> + <1-p,1-t>
        agreement = 2 * inner + places - overlaps.mask_sum[..., None]
        agreement = agreement - overlaps.object_sum[:, None]
        size = overlaps.mask_square[..., None] + overlaps.object_square[:, None] + 2e-3
        return -self.mask_weight * agreement / places - self.dice_weight * 2 * inner / size

    def class_cost(self, class_logits: Tensor, labels: Tensor) -> Tensor:
        """(B, N, G) focal cost of every pair.

        Args:
            class_logits: (B, N, T) over thing classes.
            labels: (B, G) int64 class of each object.
        """
        p = at_least_float32(class_logits).sigmoid()
        positive = -(p + 1e-12).log() * self.alpha * (1 - p).pow(self.gamma)
        negative = -(1 - p + 1e-12).log() * (1 - self.alpha) * p.pow(self.gamma)
        index = labels[:, None].expand(-1, p.shape[1], -1)
        return self.class_weight * (positive - negative).gather(2, index)

    def subset(self, num_objects: int, num_kernels: int) -> np.ndarray | None:
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
        return torch.randperm(num_objects)[:num_kernels].sort().values.numpy()

    def match(self, costs: Sequence[np.ndarray]) -> list[Matches]:
        """Solve cost matrices (N, G).

        With more objects than kernels the cheapest N pairs are matched and the rest is left out;
        `subset` draws who takes part, so that it is not always the same ones.
        """
        if not costs:
            return []
        blocks = []
        for cost in costs:
            block = cost.astype(np.float64)
            finite = np.isfinite(block)
            if not finite.all():
                self._warn(
                    "non-finite",
                    f"{int((~finite).sum())} of {block.size} matching costs are not finite "
                    "because mask or class logits are not: the learning rate may be too high",
                )
                block = np.where(finite, block, _NON_FINITE_COST)
            blocks.append(block)
        # SciPy's solver lets other threads run
        with ThreadPoolExecutor(max_workers=min(len(blocks), os.cpu_count() or 1)) as pool:
            solved = list(pool.map(linear_sum_assignment, blocks))
        return [Matches(rows, columns) for rows, columns in solved]

    def _warn(self, kind: str, message: str) -> None:
        # the 1st, 2nd, 4th, 8th, ... time: loud at first, never a flood
        count = self._warned[kind] = self._warned.get(kind, 0) + 1
        if count & (count - 1) == 0:
            logger.warning("%s (seen %d times)", message, count)
