"""Draws one scene of the toy data set *shapes*.

Things differ by outline and by a fine marking, stuff by a coarser pattern.

Colours are drawn from one distribution for everything, so a model must look at form. All
geometry comes from signed distances in numpy; labels are exact and hard, only the picture has
soft edges (`drawing`). The same arguments give the same scene.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from knet.data.shapes.drawing import (
    MAX_SHADE,
    STUFF_NAMES,
    THING_NAMES,
    marking,
    paint_thing,
    pattern,
    pick_colour,
    place_thing,
    split_regions,
)

MAX_THINGS = 6
THING_COUNT_SHARES = (0.06, 0.12, 0.16, 0.18, 0.18, 0.16, 0.14)  # of 0 … 6 things; some do not fit
MIN_VISIBLE_FRACTION = 0.5  # a thing hidden further could be of any class
MIN_VISIBLE_PIXELS = 40  # at 96 px


@dataclass(frozen=True)
class Scene:
    """One drawn scene.

    Attributes:
        image: (size, size, 3) uint8, RGB.
        segments: (size, size) uint8, index of the segment of each pixel; there is no void.
        names: the class name of each segment, first the stuff, then the things from back to
            front; every segment owns at least one pixel.
    """

    image: np.ndarray
    segments: np.ndarray
    names: tuple[str, ...]


def draw_scene(
    seed: int,
    index: int,
    *,
    split: str = "train",
    size: int = 96,
    things: Sequence[str] = THING_NAMES,
) -> Scene:
    """Draws scene number ``index`` of a split.

    Args:
        seed: of the data set, 0 or more.
        index: of the scene, 0 or more.
        split: name that keeps the scenes of two splits apart.
        size: side in pixels, at least 48. Things and patterns grow with it.
        things: which of the thing classes to draw.

    Returns:
        The scene, a pure function of the arguments.

    Raises:
        ValueError: for a negative seed or index, a size below 48, or an unknown thing class.
    """
    if not things or not set(things) <= set(THING_NAMES):
        raise ValueError(f"things must be some of {THING_NAMES}, not {tuple(things)}")
    if seed < 0 or index < 0 or size < 48:
        raise ValueError(f"need seed >= 0, index >= 0, size >= 48; got {seed}, {index}, {size}")
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    scale = size / 96
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5

    regions, num_regions = split_regions(rng, xs, ys)
    stuff = [STUFF_NAMES[i] for i in rng.permutation(len(STUFF_NAMES))[:num_regions]]
    colours: list[np.ndarray] = []
    image = np.empty((size, size, 3), np.float32)
    for region, name in enumerate(stuff):
        colour = pick_colour(rng, colours)
        colours.append(colour)
        texture = colour * (1 + pattern(rng, name, xs, ys, scale))[..., None]
        inside = regions == region
        image[inside] = texture[inside]

    segments = regions.astype(np.uint8)
    names = list(stuff)
    full_areas: list[int] = []
    for _ in range(int(rng.choice(MAX_THINGS + 1, p=THING_COUNT_SHARES))):
        # A few tries: a place where everything drawn before stays recognisable.
        for _ in range(12):
            name = things[int(rng.integers(len(things)))]
            distance = place_thing(rng, name, size).distance(xs, ys)
            painted = segments.copy()
            painted[distance < 0] = len(names)
            if _all_recognisable(painted, num_regions, full_areas, scale):
                break
        else:
            continue
        segments = painted
        full_areas.append(int((distance < 0).sum()))
        names.append(name)
        colour = pick_colour(rng, colours)
        colours.append(colour)
        fill = colour * marking(name, rng.uniform(0, np.pi), distance, xs, ys, scale)[..., None]
        paint_thing(image, distance, fill, rng.uniform(-MAX_SHADE, MAX_SHADE), xs, ys, scale)

    light = rng.uniform(-0.12, 0.12, 2)
    image *= (1 + light[0] * (xs / size - 0.5) + light[1] * (ys / size - 0.5))[..., None]
    image += rng.normal(0, rng.uniform(0.01, 0.03), image.shape)
    image8 = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    segments, kept = _drop_hidden(segments, len(names))
    return Scene(image8, segments, tuple(names[i] for i in kept))


def _drop_hidden(segments: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Renumbers to the segments that still own a pixel (things may cover a whole region)."""
    kept = np.flatnonzero(np.bincount(segments.ravel(), minlength=count))
    lookup = np.zeros(count, np.uint8)
    lookup[kept] = np.arange(len(kept))
    return lookup[segments], kept


def _all_recognisable(
    painted: np.ndarray, first_thing: int, full_areas: list[int], scale: float
) -> bool:
    areas = np.bincount(painted.ravel(), minlength=first_thing + len(full_areas) + 1)
    visible = areas[first_thing:]
    if visible.min() < MIN_VISIBLE_PIXELS * scale**2:
        return False
    return all(seen >= MIN_VISIBLE_FRACTION * full for seen, full in zip(visible, full_areas))
