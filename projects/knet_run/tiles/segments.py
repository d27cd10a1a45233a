"""What a model says of one tile, in the one form that joining knows: a map of segments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# instances of which less is to be seen, below better ones, are left out
_VISIBLE = 0.5
_LEAST_SHARE = 0.01  # stuff of fewer pixels is not told
_MOST = 8  # classes of a kind that are told


@dataclass(frozen=True)
class SegmentClass:
    """One class of a model.

    Attributes:
        id: of the data set's annotations.
        name: of the class.
        is_thing: whether its segments are objects, or one region however often it is cut.
        color: RGB, 0 to 255.
    """

    id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int]


@dataclass(frozen=True)
class TileSegments:
    """The segments of one tile.

    Attributes:
        ids: (h, w) int32; 0 for void, s for segment s.
        classes: (S,) int64, the place of segment s + 1 in the list of classes.
        scores: (S,) float64.
    """

    ids: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Segmenter:
    """A model as joining sees it.

    Attributes:
        classes: that segments may have.
        segment: gives the segments of (h, w, 3) uint8 RGB pixels.
    """

    classes: Sequence[SegmentClass]
    segment: Callable[[np.ndarray], TileSegments]


def from_instances(
    masks: Iterable[np.ndarray],
    classes: np.ndarray,
    scores: np.ndarray,
    *,
    size: tuple[int, int],
) -> TileSegments:
    """Instances that may cover each other as a map: a pixel belongs to the best of its instances.

    One of which the better ones leave less than half is left out: it is the same object again.

    Args:
        masks: boolean (h, w), by descending score.
        classes, scores: of each.
        size: (h, w).
    """
    ids = np.zeros(size, np.int32)
    kept: list[int] = []
    for k, mask in enumerate(masks):
        free = mask & (ids == 0)
        seen = np.count_nonzero(free)
        if seen and seen >= _VISIBLE * np.count_nonzero(mask):
            kept.append(k)
            ids[free] = len(kept)
    return TileSegments(ids, classes[kept], scores[kept])


def from_classes(labels: np.ndarray, scores: np.ndarray, places: Mapping[int, int]) -> TileSegments:
    """A map of labels as segments, one for each that occurs.

    Args:
        labels: (h, w) integers, the class of each pixel.
        scores: (h, w), of that class; a segment has their mean.
        places: of the labels in the list of classes.
    """
    present, ids = np.unique(labels, return_inverse=True)
    flat = ids.ravel()
    means = np.bincount(flat, scores.ravel().astype(np.float64)) / np.bincount(flat)
    classes = np.array([places[label] for label in present.tolist()], np.int64)
    return TileSegments(ids.reshape(labels.shape).astype(np.int32) + 1, classes, means)


def describe_segments(
    classes: np.ndarray, areas: np.ndarray, kinds: Sequence[SegmentClass], pixels: int
) -> str:
    """What a picture shows, in words: `1,204 disc, 31 star; sky 40 %`.

    Args:
        classes, areas: of the segments, see `knet_run.tiles.join.Joined`.
        kinds: the list of classes.
        pixels: of the picture.
    """
    counts = np.bincount(classes, minlength=len(kinds))
    covered = np.bincount(classes, areas, minlength=len(kinds)) / pixels
    parts = []
    for is_thing, numbers in ((True, counts), (False, covered)):
        order = [k for k in np.argsort(-numbers, kind="stable") if kinds[k].is_thing == is_thing]
        told = [
            f"{counts[k]:,} {kinds[k].name}" if is_thing else f"{kinds[k].name} {covered[k]:.0%}"
            for k in order
            if counts[k] and (is_thing or covered[k] >= _LEAST_SHARE)
        ]
        more = [f"{len(told) - _MOST} more"] if len(told) > _MOST else []
        parts.append(", ".join([*told[:_MOST], *more]))
    return "; ".join(filter(None, parts)) or "nothing"
