"""Results drawn over photos; photo, ground truth and prediction in a row: `side_by_side`.

All go through the same calls of Detectron2's Visualizer, in one fixed colour a class, so that
equal results look equal and the same input gives the same pixels in every run.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, GenericMask, Visualizer
from PIL import Image

__all__ = ["draw_result"]

# Task → the model's output (Detectron2's names).
TASKS = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}

# Instances with a lower score are left out of drawings and counts where nothing else is asked for:
# the published threshold of things in panoptic scenes, so that both kinds of result look alike.
DRAWN_SCORE = 0.3

_ALPHA = 0.7
_EDGE = (1.0, 1.0, 240.0 / 255)
_MOST_LABELS = 20  # of objects in a drawing
_LABELLED = 3.5  # heights of a label: sides of objects that get one
MIN_SIDE = 320  # of a drawing, at least
_LARGEST_SIDE = 4000  # of an enlarged picture


def draw_result(
    image: np.ndarray,
    result: Any,
    metadata: Metadata,
    *,
    task: str = "panoptic",
    score_threshold: float = DRAWN_SCORE,
    min_side: int = MIN_SIDE,
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

    Raises:
        ValueError: unknown task.
    """
    require_task(task)
    factor = whole_factor(image, min_side)
    visualizer = _ClassColorVisualizer(enlarge(image, factor), metadata)

    def enlarged(values: Any) -> np.ndarray:
        """(…, H', W') of ids, labels or masks."""
        array = values.detach().cpu().numpy() if torch.is_tensor(values) else np.asarray(values)
        return array.repeat(factor, axis=-2).repeat(factor, axis=-1)

    if task == "panoptic":
        ids, segments = result
        segments = [dict(segment) for segment in segments]  # areas are written into them
        visualizer.draw_panoptic_seg(torch.as_tensor(enlarged(ids)), segments, 0, _ALPHA)
    elif task == "instance":
        instances = result.to("cpu")
        if instances.has("scores"):
            instances = instances[instances.scores >= score_threshold]
        masks = enlarged(instances.pred_masks)
        drawn = Instances(masks.shape[-2:], pred_masks=masks, pred_classes=instances.pred_classes)
        if instances.has("scores"):
            drawn.scores = instances.scores.double()  # the label's percent is rounded once
        visualizer.draw_instance_predictions(drawn)
    else:
        labels = result if result.ndim == 2 else result.argmax(0)
        visualizer.draw_sem_seg(enlarged(labels), 0, _ALPHA)
    return visualizer.output.get_image()


def draw_objects(
    image: np.ndarray,
    result: tuple[Any, Sequence[Mapping[str, Any]]],
    metadata: Metadata,
    *,
    min_side: int = MIN_SIDE,
) -> np.ndarray:
    """Draw a frame of a video whose objects have ids: a colour and a label for each id.

    Args:
        image: ``(H, W, 3)`` RGB uint8.
        result: as `knet.tracking.ObjectFollower` gives it: ids (H, W) and records.
        metadata, min_side: as for :func:`draw_result`.

    Returns:
        As :func:`draw_result`. Stuff has the colours of its classes.
    """
    factor = whole_factor(image, min_side)
    visualizer = _ClassColorVisualizer(enlarge(image, factor), metadata)
    ids, segments = result
    ids = np.asarray(ids).repeat(factor, axis=0).repeat(factor, axis=1)
    stuff = [dict(segment) for segment in segments if not segment["isthing"]]
    of_stuff = np.where(np.isin(ids, [segment["id"] for segment in stuff]), ids, 0)
    visualizer.draw_panoptic_seg(torch.as_tensor(of_stuff), stuff, 0, _ALPHA)
    things = [segment for segment in segments if segment["isthing"]]
    names = metadata.get("thing_classes")
    visualizer.overlay_objects(
        [(ids == thing["id"]).astype(np.uint8) for thing in things],
        [f"{names[thing['category_id']]} {thing['id']}" for thing in things],
        [tuple(c / 255 for c in _color(thing["id"])) for thing in things],
    )
    return visualizer.output.get_image()


class _ClassColorVisualizer(Visualizer):
    """Detectron2's Visualizer with one colour a class, or one an object where there is one class.

    Small objects, and many, get no labels, which would hide them. Unlike the original it does not
    vary colours at random, separates neighbours of one class by light outlines, leaves holes of
    instances open, and has labels of readable size.

    Args:
        image: ``(H, W, 3)`` RGB, values in [0, 255].
        metadata: names and, if present, colours of the classes; missing colours are chosen.
    """

    def __init__(self, image: np.ndarray, metadata: Metadata) -> None:
        mode = ColorMode.SEGMENTATION  # instances in the colours of their classes
        super().__init__(image, metadata=with_colors(metadata), instance_mode=mode)
        self._default_font_size = max(math.sqrt(image.shape[0] * image.shape[1]) / 45, 11)

    def _jitter(self, color: Any) -> tuple[float, ...]:
        return tuple(color)

    def _change_color_brightness(self, color: Any, brightness_factor: float) -> tuple[float, ...]:
        changed = super()._change_color_brightness(color, brightness_factor)
        # Python 3.10 rounds one colour in a thousand to more than 1, which matplotlib refuses
        return tuple(min(max(value, 0.0), 1.0) for value in changed)

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

    def overlay_instances(
        self, *, masks: Any, labels: Sequence[str], assigned_colors: Sequence[Any], **_: Any
    ) -> Any:
        """Draw masks from the largest to the smallest; the original fills the holes of masks."""
        masks = [m.mask if isinstance(m, GenericMask) else np.asarray(m, np.uint8) for m in masks]
        if len(self.metadata.get("thing_classes") or []) == 1:  # colours tell objects apart
            assigned_colors = [tuple(c / 255 for c in color) for color in _palette(len(masks))]
        return self.overlay_objects(masks, labels, assigned_colors)

    def overlay_objects(
        self, masks: Sequence[np.ndarray], labels: Sequence[str], colors: Sequence[Any]
    ) -> Any:
        """Draw masks (H, W), uint8, from the largest to the smallest."""
        small = (_LABELLED * self._default_font_size) ** 2
        hidden = [len(masks) > _MOST_LABELS or mask.sum() < small for mask in masks]
        for k in sorted(range(len(masks)), key=lambda k: -int(masks[k].sum())):
            self.draw_binary_mask(
                masks[k],
                colors[k],
                edge_color=_EDGE,
                text=None if hidden[k] else labels[k],
                alpha=_ALPHA,
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
    """A copy of the metadata with a colour (RGB, 0 to 255) for each class."""
    values = {k: v for k, v in metadata.as_dict().items() if k != "name"}
    things = list(values.get("thing_classes") or [])
    stuff = list(values.get("stuff_classes") or [])
    # With contiguous ids of one kind, the stuff names begin with those of the things.
    shared = stuff[: len(things)] == things
    count = max(len(stuff), len(things)) + (0 if shared else len(things))
    palette = _palette(count)
    if len(values.get("thing_colors") or []) < len(things):
        values["thing_colors"] = palette[: len(things)]
    if len(values.get("stuff_colors") or []) < len(stuff):
        first = list(values.get("thing_colors") or [])[: len(things)] if shared else []
        values["stuff_colors"] = [*first, *palette[len(things) :]]
    return Metadata(name=f"{metadata.get('name', 'data set')} with colours", **values)


def _palette(count: int) -> list[tuple[int, ...]]:
    return [_color(k) for k in range(count)]


def _color(k: int) -> tuple[int, ...]:
    """The k-th of colours that differ: hues a golden section apart, three brightnesses."""
    hsv = (k * 0.618034 % 1.0, 0.85 - 0.25 * (k % 2), 1.0 - 0.2 * (k % 3))
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(*hsv))


def require_task(task: str) -> None:
    """ValueError: there is no such task."""
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; known are {', '.join(TASKS)}.")


def whole_factor(image: np.ndarray, min_side: int) -> int:
    """The whole factor that gives an image's shorter side `min_side` pixels at least."""
    short, long = sorted(image.shape[:2])
    # a strip would become enormous
    return max(1, min(math.ceil(min_side / short), _LARGEST_SIDE // long))


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """A photo (H, W, 3), larger by a whole factor."""
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
