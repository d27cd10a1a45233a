"""Test-time augmentation of instance and panoptic models: the same kernels in several views.

A view is the image at another size or mirrored. Kernels of things have no fixed meaning, so those
of each view are matched one to one, by their masks, to what the views before have found; masks
and scores are then averaged. A stuff kernel stands for its class in every view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from knet.inference.predictions import MaskPredictions
from knet.inference.resize import interpolation_matrix

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
