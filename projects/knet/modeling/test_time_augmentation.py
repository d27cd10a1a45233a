"""Test-time augmentation: results of several sizes and mirror images of a picture together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from knet.inference.merge_views import View
from knet.modeling.meta_arch import KNet


class KNetWithTTA(nn.Module):
    """A model for all tasks that looks at every image several times; call it as the model.

    Semantic models average probabilities; instance and panoptic models find the same kernels in
    all views and average those, see `knet.inference.merge_views`.

    Args:
        cfg: TEST.AUG gives the sizes of the shorter side and whether to mirror, as in Detectron2.
        model: a `KNet`.
        mapper: makes the views of an input; each has `image` and `transforms`.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        mapper: Callable[[Mapping[str, Any]], list[dict[str, Any]]] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        if not isinstance(model, KNet):
            raise TypeError(f"KNetWithTTA augments KNet models, not {type(model).__name__}")
        if mapper is None and not cfg.TEST.AUG.MIN_SIZES:
            raise ValueError("TEST.AUG.MIN_SIZES is empty: name at least one shorter side")
        self.model = model
        self.mapper = mapper or DatasetMapperTTA(cfg)

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As `KNet.forward` in inference; `image` may have the original or any other size."""
        results = []
        for x in batched_inputs:
            height, width = x["image"].shape[-2:]
            size = (x.get("height", height), x.get("width", width))
            views = []
            for view in self.mapper({**x, "height": size[0], "width": size[1]}):
                flips = sum(isinstance(t, HFlipTransform) for t in view["transforms"].transforms)
                (predictions,) = self.model.predict([view])
                views.append(View(predictions, flipped=flips % 2 == 1))
            results.append(self.model.task.merged_results(views, size))
        return results
