"""What each kernel of a model does, in numbers: how its masks form, and where it fires.

    trace = trace_kernels(predictor, image)
    averages = average_masks(predictor, images)

`knet.kernel_pictures` draws them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from knet.modeling.knet import KNet
from knet.modeling.panoptic import kernel_scores
from knet.modeling.predictions import MaskPredictions, PixelPredictions
from knet.predictor import KNetPredictor
from knet.visualization import DRAWN_SCORE

__all__ = ["trace_kernels"]

Predictions = MaskPredictions | PixelPredictions

_UNSURE = (0.1, 0.9)  # a pixel between these probabilities is unsure


@dataclass
class KernelTrace:
    """n kernels on one image, before the first round and after each of S rounds.

    Attributes:
        kernels: (n,) their numbers in the model, by descending last score.
        num_things: kernels below this number find things, the others are one stuff class each.
        num_thing_classes: the first so many classes are things.
        masks: (S + 1, n, H, W) float32 probabilities.
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


@torch.no_grad()
def trace_kernels(
    predictor: KNetPredictor,
    image: np.ndarray,
    *,
    num_kernels: int = 8,
    size: Sequence[int] | None = None,
) -> KernelTrace:
    """Follow the kernels with the best last scores through the rounds.

    Args:
        predictor: the model.
        image: (H, W, 3) uint8 RGB.
        num_kernels: how many; all, if the model has fewer.
        size: (height, width) of the masks; the image's by default.

    Raises:
        ValueError: the model looks at an image more than once (TEST.AUG, TEST.WINDOW).
    """
    stages, size = _stages(predictor, image), image.shape[:2] if size is None else tuple(size)
    names, num_stuff = _classes(predictor)
    best_classes = [_best_classes(stage, len(names), num_stuff, size) for stage in stages]
    scores, labels = (torch.stack(values) for values in zip(*best_classes))
    best = scores[-1].argsort(descending=True, stable=True)[:num_kernels]
    class_scores = None
    rounds = [stage for stage in stages[1:] if isinstance(stage, MaskPredictions)]
    if rounds:
        scores[0], labels[0] = torch.nan, -1
        class_scores = torch.stack([stage.class_scores[best] for stage in rounds]).cpu().numpy()
    masks = torch.stack([_masks(stage, best.tolist(), size) for stage in stages])
    return KernelTrace(
        kernels=best.cpu().numpy(),
        num_things=scores.shape[1] - num_stuff,
        num_thing_classes=len(names) - num_stuff,
        masks=masks.cpu().numpy(),
        scores=scores[:, best].cpu().numpy(),
        labels=labels[:, best].cpu().numpy(),
        class_scores=class_scores,
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
        ValueError: no image, the kernels are every image's own (KERNEL_PEAKS), or as
            `trace_kernels`.
    """
    if predictor.cfg.MODEL.KNET.KERNEL_PEAKS:
        raise ValueError(
            "this model's kernels (MODEL.KNET.KERNEL_PEAKS) are found anew in every image, so that "
            "their numbers mean nothing and there is no average: name pictures in place of a "
            "data set"
        )
    names, num_stuff = _classes(predictor)
    total = counts = torch.zeros(0)
    num_images = 0
    for num_images, image in enumerate(images, start=1):
        last = _stages(predictor, image)[-1]
        scores, labels = _best_classes(last, len(names), num_stuff, (size, size))
        count = len(scores) - num_stuff or len(scores)
        masks = _masks(last, range(count), (size, size))
        # a class of a semantic model is used where it wins a pixel
        used = scores > 0 if isinstance(last, PixelPredictions) else scores >= score_threshold
        if num_images == 1:
            total = torch.zeros_like(masks, dtype=torch.float64)
            counts = torch.zeros(count, len(names), dtype=torch.int64)
        total += masks
        counts[torch.arange(count), labels[:count].cpu()] += used[:count].cpu()
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


def _stages(predictor: KNetPredictor, image: np.ndarray) -> list[Predictions]:
    """The model's predictions for one image: initial, then every round's."""
    model = predictor.model
    if not isinstance(model, KNet):
        raise ValueError(
            "kernels are followed through one look at the whole image: set TEST.AUG.ENABLED False"
        )
    initial, rounds, (frame,) = model.trace([predictor.prepare(image)])
    stages = [model.task.predictions(output, 0, frame) for output in rounds]
    name = "logits" if isinstance(stages[0], PixelPredictions) else "masks"
    return [replace(stages[0], **{name: initial.masks[0]}), *stages]


def _masks(predictions: Predictions, kernels: Sequence[int], size: Sequence[int]) -> Tensor:
    """(n, *size) probabilities of some kernels."""
    if isinstance(predictions, PixelPredictions):
        return predictions.probabilities(size)[list(kernels)]
    device = predictions.masks.device
    resizer = predictions.frame.resizer(predictions.grid_size, size, device)
    parts = [p for _, p in resizer.stream(kernels, predictions.probabilities)]
    return torch.cat(parts) if parts else torch.zeros(0, *size, device=device)


def _classes(predictor: KNetPredictor) -> tuple[tuple[str, ...], int]:
    """Names of all classes, and how many of them are stuff."""
    categories = predictor.categories
    return tuple(c.name for c in categories), sum(not c.is_thing for c in categories)


def _best_classes(
    predictions: Predictions, num_classes: int, num_stuff: int, size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Each kernel's best class and its score; the share of the picture that a semantic one wins."""
    if isinstance(predictions, PixelPredictions):  # kernels are classes
        winner = predictions.probabilities(size).argmax(dim=0).flatten()
        won = torch.bincount(winner, minlength=num_classes)
        return won / max(len(winner), 1), torch.arange(num_classes, device=won.device)
    return kernel_scores(
        predictions.class_scores,
        num_things=len(predictions.class_scores) - num_stuff,
        num_thing_classes=num_classes - num_stuff,
    )
