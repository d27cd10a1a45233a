"""What scenes and clips of *shapes* are drawn of: colours, regions, patterns, things."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

THING_NAMES = ("disc", "square", "triangle", "star")
STUFF_NAMES = ("plain", "stripes", "checks", "dots")

DIAMETER_RANGE = (18.0, 44.0)  # at 96 px; pixels across the circumscribed circle, scaled by size
MARGIN = 0.4  # radii between a thing's centre and the border, at least
MIN_REGION_FRACTION = 0.10  # a narrower piece of a pattern shows too little of it
MIN_COLOUR_DISTANCE = 0.28  # in RGB of [0, 1]; neighbours closer than this cannot be told apart
MAX_SHADE = 0.15

# Circumscribed circles of one size would give discs twice the area of stars.
_SIZE_FACTOR = {"disc": 0.9, "square": 1.05, "triangle": 1.15, "star": 1.2}


def pick_colour(rng: np.random.Generator, taken: list[np.ndarray]) -> np.ndarray:
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


def split_regions(
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


def pattern(
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


@dataclass(frozen=True)
class Thing:
    """Outline and place of a thing, in pixels.

    Attributes:
        name: of its class.
        radius: of the circumscribed circle.
        x, y: its centre.
        turn: in radians.
    """

    name: str
    radius: float
    x: float
    y: float
    turn: float

    def distance(self, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """Signed distance in pixels of points to the outline, negative inside."""
        dx, dy = xs - self.x, ys - self.y
        if self.name == "disc":
            return np.hypot(dx, dy) - self.radius
        corners = {"square": 4, "triangle": 3, "star": 10}[self.name]
        angles = self.turn + 2 * np.pi * np.arange(corners) / corners
        radii = np.full(corners, self.radius)
        if self.name == "star":
            radii[1::2] *= 0.44
        polygon = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
        return _polygon_distance(polygon, dx, dy)


def place_thing(rng: np.random.Generator, name: str, size: int) -> Thing:
    """A thing of random size, place and turn."""
    low, high = DIAMETER_RANGE
    # The exponent makes small things a little more frequent, as they are in photographs.
    diameter = low + (high - low) * rng.random() ** 1.3
    radius = 0.5 * diameter * size / 96 * _SIZE_FACTOR[name]
    # Centres stay inside, so that the border cuts a thing at most in half.
    margin = MARGIN * radius
    x, y = rng.uniform(margin, size - margin, 2)
    return Thing(name, radius, x, y, rng.uniform(0, 2 * np.pi))


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


def marking(
    name: str,
    angle: float,
    distance: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    scale: float,
) -> np.ndarray:
    """Brightness factor (H, W) of a thing's fill, finer than any pattern of stuff."""
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


def paint_thing(
    image: np.ndarray,
    distance: np.ndarray,
    colour: np.ndarray,
    shade: float,
    xs: np.ndarray,
    ys: np.ndarray,
    scale: float,
) -> None:
    """Paints shadow, fill and a darker rim in place.

    Args:
        image: (H, W, 3) float32, changed.
        distance: (H, W) to the outline.
        colour: (H, W, 3) of the fill.
        shade: how much brighter one corner of the picture is than the other.
        xs, ys: (H, W) of the pixels.
        scale: of the drawing, 1 at 96 px.
    """
    shadow = np.clip(1 - distance / (3 * scale), 0, 1) * (distance > 0)
    image *= (1 - 0.22 * shadow)[..., None]
    rim = np.clip(1.6 * scale + distance, 0, 1) * 0.28
    light = 1 + shade * (xs - ys) / image.shape[0]
    fill = colour * (light * (1 - rim))[..., None]
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    image += alpha * (fill - image)
