"""Draws one scene of the toy data set *shapes*.

Things differ by outline and by a fine marking, stuff by a coarser pattern.

Colours are drawn from one distribution for everything, so a model must look at form. All
geometry comes from signed distances in numpy; labels are exact and hard, only the picture has
soft edges. The same arguments give the same scene.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THING_NAMES = ("disc", "square", "triangle", "star")
STUFF_NAMES = ("plain", "stripes", "checks", "dots")

MAX_THINGS = 6
THING_COUNT_SHARES = (0.06, 0.12, 0.16, 0.18, 0.18, 0.16, 0.14)  # of 0 … 6 things; some do not fit
DIAMETER_RANGE = (18.0, 44.0)  # at 96 px; pixels across the circumscribed circle, scaled by size
MIN_VISIBLE_FRACTION = 0.5  # a thing hidden further could be of any class
MIN_VISIBLE_PIXELS = 40  # at 96 px
MIN_REGION_FRACTION = 0.10  # a narrower piece of a pattern shows too little of it
MIN_COLOUR_DISTANCE = 0.28  # in RGB of [0, 1]; neighbours closer than this cannot be told apart

# Circumscribed circles of one size would give discs twice the area of stars.
_SIZE_FACTOR = {"disc": 0.9, "square": 1.05, "triangle": 1.15, "star": 1.2}


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

    regions, num_regions = _split_regions(rng, xs, ys)
    stuff = [STUFF_NAMES[i] for i in rng.permutation(len(STUFF_NAMES))[:num_regions]]
    colours: list[np.ndarray] = []
    image = np.empty((size, size, 3), np.float32)
    for region, name in enumerate(stuff):
        colour = _pick_colour(rng, colours)
        colours.append(colour)
        texture = colour * (1 + _pattern(rng, name, xs, ys, scale))[..., None]
        inside = regions == region
        image[inside] = texture[inside]

    segments = regions.astype(np.uint8)
    names = list(stuff)
    full_areas: list[int] = []
    for _ in range(int(rng.choice(MAX_THINGS + 1, p=THING_COUNT_SHARES))):
        # A few tries: a place where everything drawn before stays recognisable.
        for _ in range(12):
            name = things[int(rng.integers(len(things)))]
            distance = _thing_distance(rng, name, xs, ys, size)
            painted = segments.copy()
            painted[distance < 0] = len(names)
            if _all_recognisable(painted, num_regions, full_areas, scale):
                break
        else:
            continue
        segments = painted
        full_areas.append(int((distance < 0).sum()))
        names.append(name)
        colour = _pick_colour(rng, colours)
        colours.append(colour)
        marking = _marking(rng, name, distance, xs, ys, scale)
        _paint_thing(rng, image, distance, colour * marking[..., None], xs, ys, scale)

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


def _pick_colour(rng: np.random.Generator, taken: list[np.ndarray]) -> np.ndarray:
    """A random colour, as far as possible away from those already in the scene."""
    best, best_distance = np.zeros(3), -1.0
    for _ in range(8):
        hue, saturation, value = rng.random(), rng.uniform(0.2, 0.78), rng.uniform(0.4, 0.95)
        colour = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        distance = min((float(np.linalg.norm(colour - c)) for c in taken), default=2.0)
        if distance > best_distance:
            best, best_distance = colour, distance
        if distance >= MIN_COLOUR_DISTANCE:
            break
    return best.astype(np.float32)


def _split_regions(
    rng: np.random.Generator, xs: np.ndarray, ys: np.ndarray
) -> tuple[np.ndarray, int]:
    """Cuts the picture into 1 to 4 regions by curved bands or curved cells."""
    size = xs.shape[0]
    while True:
        count = int(rng.choice([1, 2, 3, 4], p=[0.08, 0.32, 0.4, 0.2]))
        # Bent coordinates turn straight cuts into gentle curves; strength 0 keeps them straight.
        bend = rng.uniform(0.0, 0.09) * size
        waves = 2 * np.pi * rng.uniform(0.5, 1.4, 2) / size
        phases = rng.uniform(0, 2 * np.pi, 2)
        bent_x = xs + bend * np.sin(waves[0] * ys + phases[0])
        bent_y = ys + bend * np.sin(waves[1] * xs + phases[1])
        if rng.random() < 0.5:
            angle = rng.uniform(0, 2 * np.pi)
            along = (bent_x * np.cos(angle) + bent_y * np.sin(angle)).ravel()
            cuts = np.sort(rng.uniform(0.1, 0.9, count - 1))
            regions = np.searchsorted(np.quantile(along, cuts), along).reshape(xs.shape)
        else:
            cells = count + int(rng.integers(0, 3)) if count > 1 else 1
            seeds = rng.uniform(0, size, (cells, 2))
            squared = (bent_x[None] - seeds[:, 0, None, None]) ** 2
            squared += (bent_y[None] - seeds[:, 1, None, None]) ** 2
            regions = squared.argmin(0) % count
        fractions = np.bincount(regions.ravel(), minlength=count) / regions.size
        if fractions.min() >= MIN_REGION_FRACTION:
            return regions, count


def _pattern(
    rng: np.random.Generator, name: str, xs: np.ndarray, ys: np.ndarray, scale: float
) -> np.ndarray:
    """Light and dark modulation around 0 of one kind of stuff, (H, W)."""
    angle = rng.uniform(0, 2 * np.pi)
    period = rng.uniform(6.5, 10.5) * scale
    strength = rng.uniform(0.22, 0.38) * (1 if rng.random() < 0.5 else -1)
    u = (xs * np.cos(angle) + ys * np.sin(angle)) / period + rng.random()
    v = (ys * np.cos(angle) - xs * np.sin(angle)) / period + rng.random()
    edge = 0.45 * period  # softens the edges over about one pixel
    if name == "plain":
        return np.zeros_like(xs)
    if name == "stripes":
        return strength * np.tanh(edge * np.sin(2 * np.pi * u))
    if name == "checks":
        # Half the frequency: a check is as wide as a stripe is.
        return strength * np.tanh(edge * np.sin(np.pi * u)) * np.tanh(edge * np.sin(np.pi * v))
    if name == "dots":
        # Every other row is shifted by half a period, so dots never line up as checks do.
        u = u + 0.5 * (np.floor(v) % 2)
        radius = np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5)
        inside = np.clip((0.27 - radius) * period + 0.5, 0, 1)
        return 1.5 * strength * (inside - 0.25)
    raise ValueError(f"no pattern {name!r}")


def _thing_distance(
    rng: np.random.Generator, name: str, xs: np.ndarray, ys: np.ndarray, size: int
) -> np.ndarray:
    """Signed distance in pixels to a thing of random size, place and turn, (H, W)."""
    scale = size / 96
    low, high = DIAMETER_RANGE
    # The exponent makes small things a little more frequent, as they are in photographs.
    diameter = low + (high - low) * rng.random() ** 1.3
    radius = 0.5 * diameter * scale * _SIZE_FACTOR[name]
    # Centres stay inside, so that the border cuts a thing at most in half.
    margin = 0.4 * radius
    cx, cy = rng.uniform(margin, size - margin, 2)
    turn = rng.uniform(0, 2 * np.pi)
    dx, dy = xs - cx, ys - cy
    if name == "disc":
        return np.hypot(dx, dy) - radius
    corners = {"square": 4, "triangle": 3, "star": 10}[name]
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    radii = np.full(corners, radius)
    if name == "star":
        radii[1::2] *= 0.44
    polygon = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
    return _polygon_distance(polygon, dx, dy)


def _polygon_distance(polygon: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Signed distance of points to a closed polygon (K, 2): negative inside."""
    squared = np.full(dx.shape, np.inf, np.float32)
    inside = np.zeros(dx.shape, bool)
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, 0)):
        ex, ey = float(bx - ax), float(by - ay)
        wx, wy = dx - np.float32(ax), dy - np.float32(ay)
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        squared = np.minimum(squared, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        # Even-odd rule: a ray to the right crosses this edge.
        crosses = (wy >= 0) != (dy - np.float32(by) >= 0)
        inside ^= crosses & ((ex * wy - ey * wx) * (1 if ey > 0 else -1) < 0)
    return np.where(inside, -1, 1) * np.sqrt(squared)


def _marking(
    rng: np.random.Generator,
    name: str,
    distance: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    scale: float,
) -> np.ndarray:
    """Brightness factor (H, W) of a thing's fill, finer than any pattern of stuff."""
    angle = rng.uniform(0, np.pi)
    u = (xs * np.cos(angle) + ys * np.sin(angle)) / scale
    v = (ys * np.cos(angle) - xs * np.sin(angle)) / scale
    if name == "disc":  # rings
        wave = np.cos(2 * np.pi * distance / (6 * scale))
    elif name == "square":  # a weave
        wave = np.sin(2 * np.pi * u / 7) * np.sin(2 * np.pi * v / 7) * 1.6
    elif name == "triangle":  # lines
        wave = np.sin(2 * np.pi * u / 6)
    else:  # a star is plain
        wave = np.zeros_like(u)
    return 1 + 0.26 * np.clip(wave, -1, 1)


def _paint_thing(
    rng: np.random.Generator,
    image: np.ndarray,
    distance: np.ndarray,
    colour: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    scale: float,
) -> None:
    """Paints shadow, fill and a darker rim in place."""
    shadow = np.clip(1 - distance / (3 * scale), 0, 1) * (distance > 0)
    image *= (1 - 0.22 * shadow)[..., None]
    rim = np.clip(1.6 * scale + distance, 0, 1) * 0.28
    shade = 1 + rng.uniform(-0.15, 0.15) * (xs - ys) / image.shape[0]
    fill = colour * (shade * (1 - rim))[..., None]
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    image += alpha * (fill - image)
