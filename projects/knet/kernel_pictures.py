"""What each kernel of a model does, in numbers and pictures: how its masks form, where it fires.

    trace = trace_kernels(predictor, image)
    sheet = draw_kernel_rounds(image, trace)
    averages = average_masks(predictor, images)
    sheet = draw_average_masks(averages)

Every drawing is an (H, W, 3) uint8 RGB array.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from knet.modeling.knet import KNet
from knet.modeling.panoptic import kernel_scores
from knet.modeling.predictions import MaskPredictions, PixelPredictions
from knet.predictor import KNetPredictor
from knet.visualization import DRAWN_SCORE

Predictions = Union[MaskPredictions, PixelPredictions]

_UNSURE = (0.1, 0.9)  # a pixel between these probabilities is unsure
_DPI = 110
_COLORS = "viridis"
_MAX_CLASSES = 12
_LEAST_SCORE = 0.05  # classes below it in every round are not listed


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
    stages, size = _stages(predictor, image), image.shape[:2]
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
        ValueError: no image, or as `trace_kernels`.
    """
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


def draw_kernel_rounds(image: np.ndarray, trace: KernelTrace) -> np.ndarray:
    """A row a kernel: the image with the final outline, then the mask before and after each round.

    Args:
        image: (H, W, 3) uint8 RGB, that of the trace.
        trace: of `trace_kernels`.
    """
    stages, rows = trace.masks.shape[:2]
    columns = stages + 1
    tile_width = 2.1
    tile_height = min(max(tile_width * image.shape[0] / image.shape[1], 0.9), 3.2)
    figure = _figure(columns * tile_width + 1.6, rows * (tile_height + 0.42) + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False)
    titles = ["final outline", "initial", *(f"round {r}" for r in range(1, stages))]
    ious, unsure = trace.iou_with_last(), trace.unsure()
    for ax, title in zip(axes[0], titles):
        ax.set_title(title, fontsize=10, fontweight="bold")
    axes[-1, 0].set_xlabel("pixels", fontsize=8)
    for row in range(rows):
        axes[row, 0].imshow(image)
        _outline(axes[row, 0], trace.masks[-1, row] > 0.5)
        axes[row, 0].set_ylabel(_kernel_name(trace, row), fontsize=9)
        axes[row, 0].tick_params(labelsize=6, length=2)
        for stage, ax in enumerate(axes[row, 1:]):
            ax.imshow(trace.masks[stage, row], vmin=0, vmax=1, cmap=_COLORS)
            ax.set(xticks=[], yticks=[])
            text = f"{_class_text(trace, stage, row)}\nunsure {100 * unsure[stage, row]:.0f} %"
            if stage < stages - 1:
                text += f", IoU with last {ious[stage, row]:.2f}"
            ax.set_xlabel(text, fontsize=8)
    return _render(figure, axes, "mask probability", shrink=min(1.0, 3 / rows), aspect=40)


def draw_class_scores(trace: KernelTrace) -> np.ndarray:
    """A panel a round: kernels by classes, with the scores written in.

    The classes are the (at most 12) best ones of these kernels in any round. Left grey is what has
    no meaning, because it is neither trained nor used: thing kernels are scored on thing classes,
    a stuff kernel on its own class.

    Raises:
        ValueError: a semantic model, whose kernels are its classes.
    """
    if trace.class_scores is None:
        raise ValueError("a semantic model has no class scores: its kernels are its classes")
    meant = _meant_classes(trace)
    scores = np.where(meant, trace.class_scores, np.nan)
    highest = np.where(meant, trace.class_scores, 0.0).max(axis=(0, 1))
    best = [c for c in np.argsort(-highest, kind="stable") if highest[c] >= _LEAST_SCORE]
    classes = sorted(best[:_MAX_CLASSES] or [int(highest.argmax())])
    rounds, rows = scores.shape[:2]
    figure = _figure(rounds * (0.52 * len(classes) + 0.4) + 2.6, 0.34 * rows + 2.0)
    axes = figure.subplots(1, rounds, squeeze=False, sharey=True)[0]
    for r, ax in enumerate(axes):
        values = scores[r][:, classes]
        ax.set_facecolor("0.9")
        ax.imshow(values, vmin=0, vmax=1, cmap=_COLORS, aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            color = "white" if value < 0.6 else "black"
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
        names = [trace.class_names[c] for c in classes]
        ax.set_xticks(range(len(classes)), names, rotation=45, ha="right", fontsize=9)
        ax.set_title(f"round {r + 1}", fontsize=10, fontweight="bold")
    labels = [_kernel_name(trace, row).replace("\n", " ") for row in range(rows)]
    axes[0].set_yticks(range(rows), labels, fontsize=9)
    return _render(figure, axes, "class score", aspect=25)


def draw_average_masks(averages: KernelAverages) -> np.ndarray:
    """A tile a kernel, all in one colour scale, titled with its number, class and use."""
    count = len(averages.masks)
    columns = min(count, max(4, math.ceil(math.sqrt(count))))
    rows = math.ceil(count / columns)
    figure = _figure(columns * 1.45 + 1.2, rows * 1.68 + 1.0)
    axes = figure.subplots(rows, columns, squeeze=False)
    top = float(averages.masks.max()) or 1.0
    for k, ax in enumerate(axes.flat):
        ax.set(xticks=[], yticks=[])
        if k >= count:
            ax.axis("off")
            continue
        ax.imshow(averages.masks[k], vmin=0, vmax=top, cmap=_COLORS)
        use = f"{100 * averages.used[k]:.0f} %"
        name = f"{averages.classes[k]} {use}" if averages.classes[k] else "not used"
        ax.set_title(f"kernel {k}\n{_short(name)}", fontsize=8)
    figure.suptitle(
        f"Mean mask of each kernel over {averages.num_images} pictures\n"
        f"(most frequent class, share of pictures with a score of at least "
        f"{averages.score_threshold:g})",
        fontsize=9,
    )
    figure.supxlabel("width of the picture", fontsize=9)
    figure.supylabel("height of the picture", fontsize=9)
    return _render(figure, axes, "mean mask probability", shrink=min(1.0, 4 / rows), aspect=25)


def _kernel_name(trace: KernelTrace, row: int) -> str:
    number = int(trace.kernels[row])
    if trace.class_scores is None:
        return f"class {number}\n{trace.class_names[number]}"
    kind = "thing" if number < trace.num_things else "stuff"
    return f"kernel {number}\n({kind})"


def _meant_classes(trace: KernelTrace) -> np.ndarray:
    """(n, K) whether a kernel is trained on a class: things on all things, stuff on its own."""
    classes = np.arange(len(trace.class_names))
    is_thing = trace.kernels < trace.num_things
    own = trace.labels[-1][:, None] == classes
    return np.where(is_thing[:, None], classes < trace.num_thing_classes, own)


def _class_text(trace: KernelTrace, stage: int, row: int) -> str:
    score, label = trace.scores[stage, row], trace.labels[stage, row]
    if trace.class_scores is None:
        return f"{100 * score:.1f} % of the picture"
    return "no class yet" if label < 0 else f"{_short(trace.class_names[label])} {score:.2f}"


def _short(text: str, limit: int = 22) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _outline(ax: Any, mask: np.ndarray) -> None:
    if mask.any() and not mask.all():
        for color, width in (("black", 2.6), ("yellow", 1.3)):
            ax.contour(mask, levels=[0.5], colors=color, linewidths=width)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")


def _render(figure: Figure, axes: np.ndarray, label: str, **options: Any) -> np.ndarray:
    """The figure's pixels, with a bar for the colours of its last picture."""
    image = [ax.images[-1] for ax in axes.flat if ax.images][-1]
    bar = figure.colorbar(image, ax=axes, pad=0.01, **options)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
