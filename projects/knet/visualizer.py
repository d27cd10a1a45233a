"""One result drawn over its photo: Detectron2's Visualizer with one fixed colour a class."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import GenericMask, Visualizer
from PIL import Image

__all__ = [
    "DRAWN_SCORE",
    "TASKS",
    "ClassColorVisualizer",
    "draw_result",
    "enlarge",
    "enlarging_factor",
]

# Task → the model's output (Detectron2's names).
TASKS = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}

# Instances with a lower score are left out of drawings and counts where nothing else is asked for:
# the published threshold of things in panoptic scenes, so that both kinds of result look alike.
DRAWN_SCORE = 0.3

_EDGE = (1.0, 1.0, 240.0 / 255)
_LARGEST_SIDE = 4000  # of an enlarged picture


def draw_result(
    image: np.ndarray,
    result: Any,
    metadata: Metadata,
    *,
    task: str = "panoptic",
    score_threshold: float = DRAWN_SCORE,
    min_side: int = 320,
) -> np.ndarray:
    """Draw one result over its photo.

    Args:
        image: ``(H, W, 3)`` RGB uint8.
        result: as a Detectron2 model gives it for the task: ``(ids (H, W), segments_info)``,
            ``Instances`` with ``pred_masks``, or ``sem_seg`` (C, H, W); also a label map (H, W).
        metadata: the data set's.
        task: ``panoptic``, ``instance`` or ``semantic``.
        score_threshold: instances with a lower score are left out.
        min_side: a smaller image is enlarged by a whole factor, so that labels are readable; the
            longer side becomes 4000 at most.

    Returns:
        ``(H', W', 3)`` RGB uint8, the size of the (enlarged) photo.
    """
    factor = enlarging_factor(image, min_side)
    visualizer = ClassColorVisualizer(enlarge(image, factor), metadata)
    if task == "panoptic":
        ids, segments = result
        visualizer.draw_panoptic_seg(
            torch.as_tensor(_enlarge_labels(_numpy(ids), factor)),
            [dict(segment) for segment in segments],  # the Visualizer writes areas into them
            area_threshold=0,
            alpha=0.7,
        )
    elif task == "instance":
        instances = result.to("cpu")
        if instances.has("scores"):
            instances = instances[instances.scores >= score_threshold]
        masks = _enlarge_labels(_numpy(instances.pred_masks).astype(np.uint8), factor)
        enlarged = Instances(masks.shape[-2:])
        enlarged.pred_masks = torch.as_tensor(masks)
        enlarged.pred_classes = instances.pred_classes
        if instances.has("scores"):
            enlarged.scores = instances.scores
        visualizer.draw_instance_predictions(enlarged)
    elif task == "semantic":
        labels = _numpy(result)
        if labels.ndim == 3:
            labels = labels.argmax(axis=0)
        visualizer.draw_sem_seg(_enlarge_labels(labels, factor), area_threshold=0, alpha=0.7)
    else:
        raise ValueError(f"Unknown task {task!r}; known are {', '.join(TASKS)}.")
    return visualizer.output.get_image()


class ClassColorVisualizer(Visualizer):
    """Detectron2's Visualizer with one colour a class.

    Unlike the original it does not vary colours at random, separates neighbours of one class by
    light outlines, leaves holes of instances open, and has labels of readable size.

    Args:
        image: ``(H, W, 3)`` RGB, values in [0, 255].
        metadata: names and, if present, colours of the classes; missing colours are chosen.
    """

    def __init__(self, image: np.ndarray, metadata: Metadata) -> None:
        super().__init__(image, metadata=with_colors(metadata))
        self._default_font_size = max(math.sqrt(image.shape[0] * image.shape[1]) / 45, 11)

    def _jitter(self, color: Any) -> tuple[float, ...]:
        return tuple(color)

    def draw_text(self, text: str, position: Any, **options: Any) -> Any:
        """As the original, which lets labels run over the image's borders."""
        super().draw_text(text, position, **options)
        label = self.output.ax.texts[-1]
        box = label.get_window_extent(self.output.canvas.get_renderer())  # y upwards
        x, y = label.get_position()
        x += max(2 - box.x0, 0) - max(box.x1 + 2 - self.output.width, 0)
        y += max(box.y1 + 2 - self.output.height, 0) - max(2 - box.y0, 0)
        label.set_position((x, y))
        return self.output

    def draw_instance_predictions(self, predictions: Instances) -> Any:
        """Draw ``pred_masks`` (N, H, W), ``pred_classes`` and, if present, ``scores``."""
        classes = predictions.pred_classes.tolist()
        labels = [self.metadata.thing_classes[c] for c in classes]
        if predictions.has("scores"):
            scores = predictions.scores.tolist()
            labels = [f"{n} {100 * s:.0f}%" for n, s in zip(labels, scores)]
        return self.overlay_instances(
            masks=list(predictions.pred_masks.numpy()),
            labels=labels,
            assigned_colors=[[x / 255 for x in self.metadata.thing_colors[c]] for c in classes],
            alpha=0.7,
        )

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Any] | None = None,
        alpha: float = 0.5,
    ) -> Any:
        """Draw masks from the largest to the smallest; the original fills the holes of masks."""
        if masks is None or boxes is not None or keypoints is not None or assigned_colors is None:
            return super().overlay_instances(
                boxes=boxes,
                labels=labels,
                masks=masks,
                keypoints=keypoints,
                assigned_colors=assigned_colors,
                alpha=alpha,
            )
        masks = [np.asarray(mask, dtype=np.uint8) for mask in masks]
        for k in sorted(range(len(masks)), key=lambda k: -int(masks[k].sum())):
            self.draw_binary_mask(
                masks[k],
                color=assigned_colors[k],
                edge_color=_EDGE,
                text=labels[k] if labels else None,
                alpha=alpha,
                area_threshold=0,
            )
        return self.output

    def draw_binary_mask(
        self, binary_mask: np.ndarray, color: Any = None, *, edge_color: Any = None, **options: Any
    ) -> Any:
        """As the original, which draws no outline of a mask with holes."""
        super().draw_binary_mask(binary_mask, color=color, edge_color=edge_color, **options)
        mask = GenericMask(binary_mask.astype(np.uint8), self.output.height, self.output.width)
        if edge_color is not None and mask.has_holes:
            for polygon in mask.polygons:
                self.draw_polygon(polygon.reshape(-1, 2), color, edge_color=edge_color, alpha=0)
        return self.output


def with_colors(metadata: Metadata) -> Metadata:
    """A copy of the metadata with a colour for each class."""
    values = {k: v for k, v in metadata.as_dict().items() if k != "name"}
    things = list(values.get("thing_classes") or [])
    stuff = list(values.get("stuff_classes") or [])
    # With contiguous ids of one kind, the stuff names begin with those of the things.
    shift = 0 if stuff[: len(things)] == things else len(things)
    palette = _palette(shift + max(len(stuff), len(things)))
    if len(values.get("thing_colors") or []) < len(things):
        values["thing_colors"] = palette[: len(things)]
    if len(values.get("stuff_colors") or []) < len(stuff):
        values["stuff_colors"] = palette[shift:]
        if shift == 0:
            values["stuff_colors"][: len(things)] = list(values.get("thing_colors") or [])[
                : len(things)
            ]
    return Metadata(name=f"{metadata.get('name', 'data set')} with colours", **values)


def _palette(number: int) -> list[tuple[int, int, int]]:
    """Distinct colours (RGB, 0 to 255): hues a golden section apart, three brightnesses."""
    colors = []
    for k in range(number):
        r, g, b = colorsys.hsv_to_rgb(
            k * 0.618034 % 1.0, 0.85 - 0.25 * (k % 2), 1.0 - 0.2 * (k % 3)
        )
        colors.append((round(255 * r), round(255 * g), round(255 * b)))
    return colors


def enlarging_factor(image: np.ndarray, min_side: int) -> int:
    """The whole factor that gives an image's shorter side `min_side` pixels at least."""
    short, long = sorted(image.shape[:2])
    # a strip would become enormous
    return max(1, min(math.ceil(min_side / short), _LARGEST_SIDE // long))


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """A photo (H, W, 3), larger by a whole factor."""
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _enlarge_labels(labels: np.ndarray, factor: int) -> np.ndarray:
    return labels.repeat(factor, axis=-2).repeat(factor, axis=-1)


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
