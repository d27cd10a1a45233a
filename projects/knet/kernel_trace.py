"""What each kernel of a model does: its masks and scores round by round, its mean mask.

The numbers behind `knet.kernel_pictures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Union

import numpy as np
import torch
from torch import Tensor

from knet.classes import class_ids_from_config
from knet.modeling.build import is_semantic
from knet.modeling.knet import KNet
from knet.modeling.panoptic import kernel_scores
from knet.modeling.predictions import MaskPredictions, PixelPredictions
from knet.predictor import KNetPredictor
from knet.results.categories import categories_of
from knet.visualizer import DRAWN_SCORE

__all__ = ["KernelAverages", "KernelTrace", "average_masks", "trace_kernels"]

Predictions = Union[MaskPredictions, PixelPredictions]

# a pixel between these probabilities is unsure
_UNSURE = (0.1, 0.9)


@dataclass
class KernelTrace:
    """n kernels on one image, before the first round and after each of S rounds.

    Attributes:
        kernels: (n,) their numbers in the model, by descending last score.
        num_things: kernels below this number find things, the others are one stuff class each.
        num_thing_classes: the first so many classes are things.
        masks: (S + 1, n, H, W) float32 probabilities at the image's size.
        scores: (S + 1, n) of their classes; NaN before the first round, where kernels have no
            class. In a semantic model the share of the image that the class wins.
        labels: (S + 1, n) the best class, -1 where there is none.
        class_scores: (S, n, K) of all classes; None in a semantic model.
        class_names: (K,) names, things first.
    """

    kernels: np.ndarray
    num_things: int
    num_thing_classes: int
    masks: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_scores: np.ndarray | None
    class_names: tuple[str, ...]

    def iou_with_last(self) -> np.ndarray:
        """(S + 1, n) overlap of each mask, cut at one half, with the last; 1 of two empty ones."""
        cut = self.masks > 0.5
        union = (cut | cut[-1]).sum(axis=(2, 3))
        common = (cut & cut[-1]).sum(axis=(2, 3))
        return np.where(union > 0, common / np.maximum(union, 1), 1.0)

    def unsure(self) -> np.ndarray:
        """(S + 1, n) share of a mask's pixels (above 0.1) that is unsure (0.1 to 0.9)."""
        low, high = _UNSURE
        inside = self.masks > low
        between = inside & (self.masks < high)
        return between.sum(axis=(2, 3)) / np.maximum(inside.sum(axis=(2, 3)), 1)


@dataclass
class KernelAverages:
    """Where kernels fire: means over images.

    Attributes:
        masks: (N, size, size) float32 in [0, 1], the mean of the last masks' probabilities, each
            stretched to a square; N thing kernels, or all if a model has no things.
        used: (N,) share of the images in which the kernel's score reaches the threshold; in a
            semantic model, in which the class wins a pixel.
        classes: (N,) the class that the kernel has most often then; empty if it has none.
        num_images: that were seen.
        score_threshold: see `used`.
    """

    masks: np.ndarray
    used: np.ndarray
    classes: tuple[str, ...]
    num_images: int
    score_threshold: float


@dataclass
class _Run:
    """The model's predictions for one image: initial, then every round's."""

    stages: list[Predictions]

    def masks(self, stage: int, kernels: Sequence[int], size: Sequence[int]) -> Tensor:
        """(n, *size) probabilities of some kernels."""
        predictions = self.stages[stage]
        if isinstance(predictions, PixelPredictions):
            return predictions.probabilities(size)[list(kernels)]
        frame, device = predictions.frame, predictions.masks.device
        resizer = frame.resizer(predictions.grid_size, size, device)
        parts = [p for _, p in resizer.stream(kernels, predictions.probabilities)]
        return torch.cat(parts) if parts else torch.zeros(0, *size, device=device)


@torch.no_grad()
def trace_kernels(
    predictor: KNetPredictor, image: np.ndarray, *, num_kernels: int = 8
) -> KernelTrace:
    """Follow the kernels with the best last scores through the rounds.

    Args:
        predictor: the model.
        image: (H, W, 3) uint8 RGB.
        num_kernels: how many; all, if the model has fewer.

    Raises:
        ValueError: the model looks at an image more than once (TEST.AUG, TEST.WINDOW).
    """
    run, size = _run(predictor, image), image.shape[:2]
    names, num_stuff = _classes(predictor)
    last = run.stages[-1]
    class_scores = None
    if isinstance(last, PixelPredictions):
        everything = range(len(last.logits))
        num_things = 0
        # no class branch: how much of the image each class wins
        scores = torch.stack(
            [_won(run.masks(stage, everything, size)) for stage in range(len(run.stages))]
        )
        labels = torch.arange(len(last.logits)).expand(len(scores), -1)
    else:
        rounds = [p for p in run.stages[1:] if isinstance(p, MaskPredictions)]
        num_things = len(last.class_scores) - num_stuff
        pairs = [_best_classes(p, len(names), num_stuff) for p in rounds]
        scores = torch.stack([torch.full_like(pairs[0][0], torch.nan), *(s for s, _ in pairs)])
        labels = torch.stack([torch.full_like(pairs[0][1], -1), *(c for _, c in pairs)])
        class_scores = torch.stack([p.class_scores for p in rounds])
    best = scores[-1].argsort(descending=True, stable=True)[:num_kernels]
    chosen = best.tolist()
    masks = torch.stack([run.masks(stage, chosen, size) for stage in range(len(run.stages))])
    return KernelTrace(
        kernels=best.cpu().numpy(),
        num_things=num_things,
        num_thing_classes=len(names) - num_stuff,
        masks=masks.cpu().numpy(),
        scores=scores[:, best].cpu().numpy(),
        labels=labels.to(best.device)[:, best].cpu().numpy(),
        class_scores=None if class_scores is None else class_scores[:, best].cpu().numpy(),
        class_names=names,
    )


@torch.no_grad()
def average_masks(
    predictor: KNetPredictor,
    images: Iterable[np.ndarray],
    *,
    size: int = 200,
    score_threshold: float = DRAWN_SCORE,
) -> KernelAverages:
    """Where each thing kernel tends to fire: the mean of its last mask over images.

    Args:
        predictor: the model.
        images: (H, W, 3) uint8 RGB each, of any sizes.
        size: side of the squares that masks are stretched to.
        score_threshold: from which score on a kernel counts as used.

    Raises:
        ValueError: no image, or as `trace_kernels`.
    """
    names, num_stuff = _classes(predictor)
    total = counts = torch.zeros(0)
    num_images = 0
    for num_images, image in enumerate(images, start=1):
        run = _run(predictor, image)
        last = run.stages[-1]
        if isinstance(last, PixelPredictions):
            masks = run.masks(-1, range(len(last.logits)), (size, size))
            used, labels = _won(masks) > 0, torch.arange(len(masks))
        else:
            count = len(last.class_scores) - num_stuff or len(last.class_scores)
            masks = run.masks(-1, range(count), (size, size))
            scores, labels = _best_classes(last, len(names), num_stuff)
            used, labels = scores[:count] >= score_threshold, labels[:count]
        if num_images == 1:
            total = torch.zeros_like(masks, dtype=torch.float64)
            counts = torch.zeros(len(masks), len(names), dtype=torch.int64)
        total += masks
        counts[torch.arange(len(masks)), labels.cpu()] += used.cpu()
    if not num_images:
        raise ValueError("no image to average over")
    often = counts.max(dim=1)
    return KernelAverages(
        masks=(total / num_images).float().cpu().numpy(),
        used=(counts.sum(dim=1) / num_images).numpy(),
        classes=tuple(
            names[label] if count else ""
            for count, label in zip(often.values.tolist(), often.indices.tolist())
        ),
        num_images=num_images,
        score_threshold=score_threshold,
    )


def _run(predictor: KNetPredictor, image: np.ndarray) -> _Run:
    model = predictor.model
    if not isinstance(model, KNet):
        raise ValueError(
            "kernels are followed through one look at the whole image: set TEST.AUG.ENABLED False"
        )
    initial, rounds, (frame,) = model.trace([predictor.prepare(image)])
    stages = [model.task.predictions(output, 0, frame) for output in rounds]
    masks = initial.masks[0]
    if isinstance(stages[0], PixelPredictions):
        first = replace(stages[0], logits=masks)
    else:
        first = replace(stages[0], masks=masks)
    return _Run([first, *stages])


def _classes(predictor: KNetPredictor) -> tuple[tuple[str, ...], int]:
    """Names of all classes, and how many of them are stuff."""
    cfg = predictor.cfg
    ids = class_ids_from_config(cfg, semantic=is_semantic(cfg))
    return tuple(c.name for c in categories_of(predictor.metadata, ids)), len(ids.stuff)


def _best_classes(
    predictions: MaskPredictions, num_classes: int, num_stuff: int
) -> tuple[Tensor, Tensor]:
    return kernel_scores(
        predictions.class_scores,
        num_things=len(predictions.class_scores) - num_stuff,
        num_thing_classes=num_classes - num_stuff,
    )


def _won(masks: Tensor) -> Tensor:
    """(K,) share of the pixels that each of (K, H, W) wins."""
    winner = masks.argmax(dim=0).flatten()
    return torch.bincount(winner, minlength=len(masks)) / max(len(winner), 1)
