"""Panoptic fusion one kernel at a time: its map and the running ones stay in a CPU's caches."""

from __future__ import annotations

import torch
from torch import Tensor

from knet.modeling.panoptic import PanopticFusion


class StreamedFusion(PanopticFusion):
    """`PanopticFusion`, whose rule it shares, with another inner loop."""

    def add(self, first: int, probabilities: Tensor) -> None:
        """As of `PanopticFusion`."""
        value, better = torch.empty_like(self.best), torch.empty_like(self.best)
        areas = []
        for kernel, p in enumerate(probabilities, start=first):
            own = torch.ge(p, 0.5, out=better)
            areas.append(own.sum(dtype=torch.float64))
            if self._rivals is not None:
                torch.mul(p, self._rivals[kernel], out=value)
                torch.maximum(self._best_rival, value, out=self._best_rival)
                own = own.clone()
            torch.mul(p, self._competing[kernel], out=value)
            torch.gt(value, self.best, out=better)
            torch.maximum(self.best, value, out=self.best)
            self._winner.lerp_(better.new_tensor(float(kernel)), better)  # exact for 0 and 1
            if self._rivals is not None:
                self._certain.lerp_(own, better)
        self.own_areas[first : first + len(areas)] = torch.stack(areas).long()
