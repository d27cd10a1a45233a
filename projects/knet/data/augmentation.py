"""Augmentations beyond Detectron2's, the list that a config asks for, and how labels follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image, ImageOps

from knet.data.jitter import ScaleJitter
from knet.modeling.targets import IGNORE_LABEL


@dataclass
class Labels:
    """Labels of one picture before augmentation; None: the record has none of this kind."""

    classes: np.ndarray | None = None  # (N,) int64, of the instances
    masks: list[dict[str, Any]] | None = None  # N compressed RLE, of the instances
    # (H, W) integers in place of masks: the row of `classes` of a pixel; its class -1: no instance
    rows: np.ndarray | None = None
    sem_seg: np.ndarray | None = None  # (H, W) integers, 255 where there is no label


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, which makes pictures that are thousands of times as long as wide vanish."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draws the transform of an (H, W, C) image; it leaves each side a pixel or more."""
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(transform.new_h, 1), max(transform.new_w, 1)
        return transform


class StretchContrast(T.Augmentation):
    """Spreads the brightness of an image over 0 to 255, Pillow's ``autocontrast``.

    Brightness is that of RGB; in BGR red and blue change their weights in it.

    Args:
        cutoff: percent of the darkest, and of the brightest pixels that become 0 and 255.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The transform of an (H, W, 1) or (H, W, 3) uint8 image; all channels change alike."""
        return T.ColorTransform(self._stretch)

    def _stretch(self, pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        stretched = ImageOps.autocontrast(image, cutoff=self.cutoff, preserve_tone=True)
        return np.asarray(stretched).reshape(pixels.shape)


class PermuteChannels(T.Augmentation):
    """Puts the colour channels into a random order, all orders being equally likely."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draws the transform of an (H, W, C) image."""
        order = np.random.permutation(image.shape[2])
        return T.ColorTransform(lambda pixels: pixels[..., order])


class InvertColors(T.Augmentation):
    """Replaces each uint8 value v by 255 - v, with probability ``prob``."""

    def __init__(self, prob: float = 0.5) -> None:
        super().__init__()
        self.prob = prob

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draws the transform of an (H, W, C) uint8 image."""
        if self._rand_range() >= self.prob:
            return T.NoOpTransform()
        return T.ColorTransform(lambda pixels: 255 - pixels)


def photometric_distortion(image_format: str) -> T.Transform:
    """Random brightness, contrast, saturation and hue, as in the published ADE20K recipe.

    Args:
        image_format: of the (H, W, 3) uint8 pictures, "RGB" or "BGR".

    Returns:
        Detectron2's transform, which draws anew for each picture, from Python's ``random``.

    Raises:
        ValueError: for another format.
    """
    if image_format not in ("RGB", "BGR"):
        raise ValueError(
            f"INPUT.KNET_COLOR_AUG: photometric needs INPUT.FORMAT RGB or BGR, not {image_format!r}"
        )
    # Here, since it needs OpenCV and registers all of PointRend.
    from detectron2.projects.point_rend import ColorAugSSDTransform

    return ColorAugSSDTransform(image_format)


# Each is made for pictures of INPUT.FORMAT.
COLOR_AUGMENTATIONS: dict[str, Callable[[str], T.Augmentation | T.Transform]] = {
    "photometric": photometric_distortion,
    "permute_channels": lambda _: PermuteChannels(),
    "invert": lambda _: InvertColors(),
}


def build_knet_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation | T.Transform]:
    """Builds the augmentations of a config: contrast, resize, crop, flip, colour.

    With Detectron2's defaults this is the published COCO recipe: the shorter side drawn from
    ``INPUT.MIN_SIZE_TRAIN``, and a flip in half of the cases. In tests pictures only get
    their contrast and size. The mapper pads what ``INPUT.SCALE_JITTER`` leaves smaller than a crop.

    Args:
        cfg: a config with the keys of :func:`knet.data.add_data_config`.
        is_train: whether to augment.

    Raises:
        ValueError: for a colour augmentation that does not exist or does not fit INPUT.FORMAT, or
            an unknown flip.
    """
    inputs = cfg.INPUT
    augmentations: list[T.Augmentation | T.Transform] = []
    if inputs.CONTRAST_CUTOFF > 0:
        augmentations.append(StretchContrast(inputs.CONTRAST_CUTOFF))
    if not is_train:
        sizes = inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST
        return [*augmentations, ResizeShortestEdge(*sizes, "choice")]
    if inputs.SCALE_JITTER:
        augmentations.append(ScaleJitter(inputs.SCALE_JITTER, inputs.CROP.SIZE))
    else:
        sizes = inputs.MIN_SIZE_TRAIN, inputs.MAX_SIZE_TRAIN
        augmentations.append(ResizeShortestEdge(*sizes, inputs.MIN_SIZE_TRAIN_SAMPLING))
    if inputs.CROP.ENABLED:
        # After the resize: the published ADE20K recipe crops 512x512 out of a rescaled picture.
        if inputs.CROP.SINGLE_CATEGORY_MAX_AREA < 1:
            augmentations.append(
                T.RandomCrop_CategoryAreaConstraint(
                    inputs.CROP.TYPE,
                    inputs.CROP.SIZE,
                    inputs.CROP.SINGLE_CATEGORY_MAX_AREA,
                    ignored_category=IGNORE_LABEL,
                )
            )
        else:
            augmentations.append(T.RandomCrop(inputs.CROP.TYPE, inputs.CROP.SIZE))
    if inputs.RANDOM_FLIP not in ("none", "horizontal", "vertical"):
        raise ValueError(
            f"INPUT.RANDOM_FLIP must be none, horizontal or vertical, not {inputs.RANDOM_FLIP!r}"
        )
    if inputs.RANDOM_FLIP != "none":
        horizontal = inputs.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    for name in inputs.KNET_COLOR_AUG:
        if name not in COLOR_AUGMENTATIONS:
            raise ValueError(
                f"INPUT.KNET_COLOR_AUG holds {name!r}; known are {sorted(COLOR_AUGMENTATIONS)}"
            )
        augmentations.append(COLOR_AUGMENTATIONS[name](inputs.FORMAT))
    return augmentations


def largest_train_sides(cfg: CfgNode) -> tuple[int, int]:
    """The shorter and the longer side that training pictures can get before a crop, at most."""
    inputs = cfg.INPUT
    if inputs.SCALE_JITTER:
        side = math.ceil(max(inputs.CROP.SIZE) * max(inputs.SCALE_JITTER))
        return side, side  # any picture that fits the frame fits this square
    return max(inputs.MIN_SIZE_TRAIN), inputs.MAX_SIZE_TRAIN


def transform_labels(transforms: T.TransformList, labels: np.ndarray) -> np.ndarray:
    """Moves a label map (H, W) along with its picture, by nearest neighbour; keeps the dtype.

    Pixels that come from outside of the picture become 0.
    """
    if labels.dtype == np.uint8:
        return np.array(transforms.apply_segmentation(labels))
    # Detectron2 takes other neighbours for other types, so it is the pixels that are moved.
    flat = np.concatenate([np.zeros(1, labels.dtype), labels.ravel(order="F")])
    return flat[_moved_pixels(transforms, labels.shape)]


def transform_masks(
    transforms: T.TransformList, masks: Sequence[dict[str, Any]], size: tuple[int, int]
) -> np.ndarray:
    """Moves masks along with their picture, by nearest neighbour.

    One mask at a time is decoded at the picture's own size, whatever their number.

    Args:
        transforms: of the picture.
        masks: N compressed RLE dicts of the picture before.
        size: (H, W) of the picture afterwards.

    Returns:
        (N, H, W) bool.
    """
    moved = np.zeros((len(masks), *size), bool)
    if not masks:
        return moved
    height, width = masks[0]["size"]
    pixels = _moved_pixels(transforms, (height, width))
    flat = np.zeros(height * width + 1, np.uint8)
    for mask, rle in zip(moved, masks):
        flat[1:] = mask_util.decode(rle).ravel(order="F")  # as decoded: by columns
        np.take(flat, pixels, out=mask.view(np.uint8))
    return moved


def _moved_pixels(transforms: T.TransformList, size: tuple[int, int]) -> np.ndarray:
    """Where each pixel of the moved picture comes from: 1 + its index by columns, 0 for nowhere.

    The index goes through as three maps of bytes, the one type whose nearest neighbours are those
    of Pillow, as the picture's are.
    """
    height, width = size
    index = np.arange(1, height * width + 1, dtype=np.uint32).reshape(width, height).T
    parts = (
        transforms.apply_segmentation(np.ascontiguousarray(index >> shift & 0xFF, np.uint8))
        for shift in range(0, 32, 8)
        if index[-1, -1] >> shift
    )
    moved = [part.astype(np.int64) << 8 * number for number, part in enumerate(parts)]
    return np.sum(moved, axis=0)
