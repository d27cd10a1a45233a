"""Draws a clip: things of *shapes* that move over a scene and pass behind a bar and each other.

What is drawn, and how, is that of `scene`, so that a model of scenes finds it. Each clip has things
that vanish whole and come back later; its things are of two classes, so that a class alone does not
tell who came back.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from knet.data.shapes.drawing import (
    MARGIN,
    MAX_SHADE,
    STUFF_NAMES,
    THING_NAMES,
    Thing,
    marking,
    paint_thing,
    pattern,
    pick_colour,
    place_thing,
    split_regions,
)

THING_COUNTS = (3, 4)
SPEEDS = (1.5, 3.0)  # pixels a frame at 96 px
_TURNS = (-0.04, 0.04)  # radians a frame
_BAR_WIDTHS = (0.34, 0.44)  # of the picture's side
_LEAST = 0.13  # radius of a thing by the picture's side: a smaller one is often not found
_LARGEST = 0.84  # diameter of a thing by the width of the bar: it can vanish behind it
_HIDINGS = 2  # times that a thing vanishes and comes back in a clip, at least
_SEEN = 40  # pixels at 96 px of a thing that is there
_TRIES = 60


@dataclass(frozen=True)
class Clip:
    """One drawn clip.

    Attributes:
        images: (T, size, size, 3) uint8, RGB.
        segments: (T, size, size) uint8, index of the segment of each pixel, the same in all frames;
            there is no void. A thing that is hidden owns no pixel.
        names: the class name of each segment, first the stuff, then the things.
        hidings: how often a thing vanishes whole and comes back.
    """

    images: np.ndarray
    segments: np.ndarray
    names: tuple[str, ...]
    hidings: int


@dataclass(frozen=True)
class _Mover:
    """A thing and its way: back and forth between the borders, turning."""

    thing: Thing
    speed: tuple[float, float]
    turning: float

    def at(self, frame: int, size: int) -> Thing:
        margin = MARGIN * self.thing.radius
        start = (self.thing.x, self.thing.y)
        x, y = (_bounced(p + v * frame, margin, size - margin) for p, v in zip(start, self.speed))
        return replace(self.thing, x=x, y=y, turn=self.thing.turn + self.turning * frame)


def draw_clip(
    seed: int,
    index: int,
    *,
    num_frames: int = 48,
    split: str = "clips",
    size: int = 96,
    things: Sequence[str] = THING_NAMES,
) -> Clip:
    """Draws clip number ``index`` of a split.

    Args:
        seed: of the data set, 0 or more.
        index: of the clip, 0 or more.
        num_frames: T, at least 24: less is too short to vanish and come back.
        split: name that keeps the clips of two splits apart.
        size: side in pixels, at least 48. Things, patterns and speeds grow with it.
        things: the thing classes to draw of.

    Returns:
        The clip, a pure function of the arguments.

    Raises:
        ValueError: for a negative seed or index, a size below 48, too few frames, or an unknown
            thing class.
    """
    if not things or not set(things) <= set(THING_NAMES):
        raise ValueError(f"things must be some of {THING_NAMES}, not {tuple(things)}")
    if seed < 0 or index < 0 or size < 48 or num_frames < 24:
        raise ValueError(
            f"need seed >= 0, index >= 0, size >= 48, num_frames >= 24; got {seed}, {index}, "
            f"{size}, {num_frames}"
        )
    for attempt in range(_TRIES):
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index, attempt])
        drawing = _Drawing(rng, size, num_frames, things)
        hidings = _hidings(drawing.visible())
        if hidings >= _HIDINGS or attempt == _TRIES - 1:
            break
    if hidings < _HIDINGS:
        raise ValueError(f"seed {seed}, clip {index}: nothing vanishes in {num_frames} frames")
    images, segments = zip(*(drawing.frame(rng, k) for k in range(num_frames)))
    return Clip(np.stack(images), np.stack(segments), drawing.names, hidings)


class _Drawing:
    """All of a clip that is drawn by chance once, and its frames."""

    def __init__(
        self, rng: np.random.Generator, size: int, num_frames: int, things: Sequence[str]
    ) -> None:
        self.size, self.num_frames, self.scale = size, num_frames, size / 96
        self.ys, self.xs = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
        # a class is left for the bar
        while True:
            regions, count = split_regions(rng, self.xs, self.ys)
            if count < len(STUFF_NAMES):
                break
        stuff = [STUFF_NAMES[i] for i in rng.permutation(len(STUFF_NAMES))[: count + 1]]
        self.bar, width = self._bar(rng)
        self.stuff_segments = regions.astype(np.uint8)
        colours: list[np.ndarray] = []
        self.textures: list[np.ndarray] = []
        for name in stuff:
            colours.append(pick_colour(rng, colours))
            texture = 1 + pattern(rng, name, self.xs, self.ys, self.scale)
            self.textures.append(colours[-1] * texture[..., None])
        classes = [things[i] for i in rng.permutation(len(things))[:2]]
        self.movers: list[_Mover] = []
        self.looks: list[tuple[np.ndarray, float, float]] = []  # colour, angle, shade
        for k in range(int(rng.choice(THING_COUNTS))):
            thing = place_thing(rng, classes[k % len(classes)], size)
            radius = min(max(thing.radius, _LEAST * size), _LARGEST * width / 2)
            thing = replace(thing, radius=radius)
            speed, way = rng.uniform(*SPEEDS) * self.scale, rng.uniform(0, 2 * np.pi)
            velocity = (speed * math.cos(way), speed * math.sin(way))
            self.movers.append(_Mover(thing, velocity, rng.uniform(*_TURNS)))
            colours.append(pick_colour(rng, colours))
            angle, shade = rng.uniform(0, np.pi), rng.uniform(-MAX_SHADE, MAX_SHADE)
            self.looks.append((colours[-1], angle, shade))
        self.names = (*stuff, *(mover.thing.name for mover in self.movers))
        self.light = rng.uniform(-0.12, 0.12, 2)
        self.noise = rng.uniform(0.01, 0.03)

    def _bar(self, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Where the bar is, which stands before all things, and its width in pixels."""
        width = rng.uniform(*_BAR_WIDTHS) * self.size
        angle = rng.uniform(0, np.pi)
        x, y = rng.uniform(0.35, 0.65, 2) * self.size
        across = (self.xs - x) * math.cos(angle) + (self.ys - y) * math.sin(angle)
        return np.abs(across) < width / 2, width

    def labels(self, distances: Sequence[np.ndarray]) -> np.ndarray:
        """(size, size) uint8 segments of a frame in which things have these distances."""
        first = len(self.textures)
        segments = self.stuff_segments.copy()
        for k, distance in enumerate(distances):
            segments[distance < 0] = first + k
        segments[self.bar] = first - 1
        return segments

    def distances(self, frame: int) -> list[np.ndarray]:
        """Signed distances to the things, from back to front."""
        return [mover.at(frame, self.size).distance(self.xs, self.ys) for mover in self.movers]

    def visible(self) -> np.ndarray:
        """(T, things) whether a thing is seen, -1 hidden whole, 0 hardly there, 1 seen."""
        first, count = len(self.textures), len(self.names)
        rows = []
        for frame in range(self.num_frames):
            segments = self.labels(self.distances(frame))
            areas = np.bincount(segments.ravel(), minlength=count)[first:]
            seen = areas >= _SEEN * self.scale**2
            rows.append(seen.astype(int) - (areas == 0))
        return np.array(rows)

    def frame(self, rng: np.random.Generator, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture and segments of a frame; the noise is drawn anew."""
        image = np.empty((self.size, self.size, 3), np.float32)
        for k, texture in enumerate(self.textures[:-1]):
            inside = self.stuff_segments == k
            image[inside] = texture[inside]
        distances = self.distances(frame)
        for mover, distance, (colour, angle, shade) in zip(self.movers, distances, self.looks):
            thing = mover.at(frame, self.size)
            dx, dy = self.xs - thing.x, self.ys - thing.y
            turned = angle + mover.turning * frame
            marked = marking(thing.name, turned, distance, dx, dy, self.scale)
            fill = colour * marked[..., None]
            paint_thing(image, distance, fill, shade, self.xs, self.ys, self.scale)
        image[self.bar] = self.textures[-1][self.bar]
        light_x, light_y = self.light
        across, down = self.xs / self.size - 0.5, self.ys / self.size - 0.5
        image *= (1 + light_x * across + light_y * down)[..., None]
        image += rng.normal(0, self.noise, image.shape)
        return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8), self.labels(distances)


def _bounced(position: float, low: float, high: float) -> float:
    """A position on a line that is reflected at its ends."""
    span = high - low
    along = (position - low) % (2 * span)
    return low + min(along, 2 * span - along)


def _hidings(visible: np.ndarray) -> int:
    """How often things are seen, then hidden whole, then seen again."""
    count = 0
    for states in visible.T:
        seen, hidden = False, False
        for state in states:
            if state == 1:
                count += hidden
                seen, hidden = True, False
            elif state == -1:
                hidden = seen
    return count
