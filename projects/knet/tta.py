"""Test-time augmentation: results of several sizes and mirror images of a picture together.

Semantic models average probabilities. Kernels of things have no fixed meaning, so those of each
view are matched one to one, by their masks, to what the views before have found; masks and scores
are then averaged. A stuff kernel stands for its class in every view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from knet.modeling.knet import KNet
from knet.modeling.predictions import MaskPredictions
from knet.modeling.resize import interpolation_matrix

# two masks are of one object from this dice coefficient on
_SAME = 0.5
# what only a later view has found counts from this score on
_LEAST_SCORE = 0.05


@dataclass
class View:
    """A model's predictions on one view of an image.

    Attributes:
        predictions: `MaskPredictions` or `PixelPredictions`.
        flipped: whether the view was mirrored, left to right.
    """

    predictions: Any
    flipped: bool = False


def finest_first(views: Sequence[View]) -> list[View]:
    """The same views, those that are not mirrored first, and of them those of the finest grid."""
    return sorted(views, key=lambda view: (view.flipped, -math.prod(view.predictions.grid_size)))


def merge_views(views: Sequence[View], *, num_stuff_classes: int) -> MaskPredictions:
    """Average the kernels of all views.

    An object that only some views show keeps its mean mask, and its mean score if they are half of
    all views; of fewer, its score sinks in proportion.

    Args:
        views: of `MaskPredictions`; the first one, not mirrored, gives the grid of the result,
            see `finest_first`.
        num_stuff_classes: S; the kernels of stuff are the last ones.

    Returns:
        Predictions of N' + S kernels, N' of them of things.
    """
    first = views[0].predictions
    if views[0].flipped:
        raise ValueError("the first view gives the grid of the result and must not be mirrored")
    masks = _grid_masks(first)
    split = len(masks) - num_stuff_classes
    things, stuff = masks[:split], masks[split:]
    thing_scores, stuff_scores = first.class_scores[:split], first.class_scores[split:]
    seen = things.new_ones(split)  # in how many views
    for view in views[1:]:
        aligned = _align(view, first)
        scores = view.predictions.class_scores
        split = len(aligned) - num_stuff_classes
        stuff, stuff_scores = stuff + aligned[split:], stuff_scores + scores[split:]
        ours, theirs = _match(
            things / seen[:, None, None], thing_scores, aligned[:split], scores[:split]
        )
        things[ours] += aligned[theirs]
        thing_scores = thing_scores.index_add(0, ours, scores[theirs])
        seen[ours] += 1
        new = torch.ones(split, dtype=torch.bool, device=aligned.device)
        new[theirs] = False
        new &= scores[:split].amax(dim=1) >= _LEAST_SCORE
        new = new.nonzero()[:, 0]
        things = torch.cat([things, aligned[new]])
        thing_scores = torch.cat([thing_scores, scores[new]])
        seen = torch.cat([seen, seen.new_ones(len(new))])
    # an object that half of the views show keeps its mean score
    votes = seen.clamp(min=len(views) / 2)[:, None]
    return MaskPredictions(
        class_scores=torch.cat([thing_scores / votes, stuff_scores / len(views)]),
        masks=torch.cat([things / seen[:, None, None], stuff / len(views)]),
        frame=first.frame,
        are_logits=False,
    )


@dataclass
class PixelViews:
    """All views of one image by a semantic model, in the place of its `PixelPredictions`.

    Attributes:
        views: of `PixelPredictions`, one at least.
    """

    views: Sequence[View]

    def probabilities(self, output_size: Sequence[int]) -> Tensor:
        """(K, H, W) at `output_size`: the mean of the views'."""
        total: Tensor | None = None
        for view in self.views:
            probabilities = view.predictions.probabilities(output_size)
            if view.flipped:
                probabilities = probabilities.flip(-1)
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None  # there is at least one view
        return total.div_(len(self.views))


def _grid_masks(predictions: MaskPredictions) -> Tensor:
    return predictions.probabilities(range(len(predictions.masks)))


def _match(
    masks: Tensor, scores: Tensor, other_masks: Tensor, other_scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Pairs of kernels with the same mask, those of similar classes first."""
    a, b = masks.flatten(1), other_masks.flatten(1)
    norms = a.square().sum(1)[:, None] + b.square().sum(1)[None]
    dice = 2 * (a @ b.T) / norms.clamp(min=1e-6)
    classes = torch.nn.functional.cosine_similarity(scores[:, None], other_scores[None], dim=2)
    affinity = (dice * (1 + classes)).cpu()
    rows, columns = (
        torch.from_numpy(i).to(masks.device)
        for i in linear_sum_assignment(affinity.numpy(), maximize=True)
    )
    same = dice[rows, columns] >= _SAME
    return rows[same], columns[same]


def _align(view: View, reference: MaskPredictions) -> Tensor:
    """The view's probabilities on the reference's grid, mirrored back; 0 beside the image."""
    masks = _grid_masks(view.predictions)
    rows, columns = (
        _alignment(
            cells=reference.grid_size[axis],
            padded=reference.frame.padded_size[axis],
            image=reference.frame.image_size[axis],
            view_cells=masks.shape[axis - 2],
            view_padded=view.predictions.frame.padded_size[axis],
            view_image=view.predictions.frame.image_size[axis],
            flipped=view.flipped and axis == 1,
        ).to(masks.device)
        for axis in (0, 1)
    )
    return rows @ masks @ columns.T


def _alignment(
    *,
    cells: int,
    padded: int,
    image: int,
    view_cells: int,
    view_padded: int,
    view_image: int,
    flipped: bool,
) -> Tensor:
    """(cells, view_cells) weights along one side."""
    # share of the image's length at which each cell's centre lies; double precision, so that
    # equal views are matched cell by cell
    share = (torch.arange(cells, dtype=torch.float64) + 0.5) * padded / cells / image
    inside = share < 1
    if flipped:
        share = 1 - share
    position = share * view_image * view_cells / view_padded - 0.5
    return interpolation_matrix(position, view_cells) * inside[:, None]


class KNetWithTTA(nn.Module):
    """A model for all tasks that looks at every image several times; call it as the model.

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
        predicted = zip(batched_inputs, self.predict(batched_inputs))
        return [self.model.task.results(found, _size(x)) for x, found in predicted]

    @torch.no_grad()
    def predict(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> list[MaskPredictions | PixelViews]:
        """As `KNet.predict`: what all views of each image say together."""
        return [self._predict(x) for x in batched_inputs]

    def _predict(self, x: Mapping[str, Any]) -> MaskPredictions | PixelViews:
        height, width = _size(x)
        views = []
        for view in self.mapper({**x, "height": height, "width": width}):
            flips = sum(isinstance(t, HFlipTransform) for t in view["transforms"].transforms)
            (predictions,) = self.model.predict([view])
            views.append(View(predictions, flipped=flips % 2 == 1))
        if not isinstance(views[0].predictions, MaskPredictions):
            return PixelViews(views)
        stuff = len(self.model.task.class_ids.stuff)
        return merge_views(finest_first(views), num_stuff_classes=stuff)


def _size(x: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) of the original image."""
    height, width = x["image"].shape[-2:]
    return x.get("height", height), x.get("width", width)
