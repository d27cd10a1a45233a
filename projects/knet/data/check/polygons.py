"""Polygons that can be used, but look wrong: beyond the picture, edges that cross, holes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely

from knet.data.defects import Defect, Defects
from knet.data.masks import TOLERANCE, extent, part

# A crossing shallower than this (pixels) is rounding: outlines from masks touch themselves often.
_DEPTH = 1e-2
_PAIRS = 1 << 19  # of edges that are tested at once, and those of the last edge
_MOST_PAIRS = 1 << 22  # of edges that are tested of one polygon: all pairs of 2,900 edges


class TooManyPairs(ValueError):
    """More pairs of edges might cross than are tested."""


def polygon_warnings(
    polygons: Sequence[Sequence[float]], size: tuple[int, int], file: str, record: str
) -> list[Defect]:
    """What looks wrong with an object's polygons.

    Args:
        polygons: [x0, y0, x1, y1, …] each, in pixels, without an error
            (see :func:`knet.data.masks.segmentation_errors`).
        size: (H, W) of the picture.
        file, record: to mend.
    """
    found = Defects(file, record)
    for index, polygon in enumerate(polygons):
        which = part(index, polygons)
        points = np.asarray(polygon, np.float64).reshape(-1, 2)
        if points.min() < -TOLERANCE or (points.max(axis=0) > np.add(size[::-1], TOLERANCE)).any():
            text = f"{which}the polygon lies partly outside the picture ({extent(points, size)})"
            found.add("polygon-outside", text, severity="warning")
        try:
            crossing = crossing_edges(points)
        except TooManyPairs:
            text = f"{which}not checked for self-intersection: {len(points)} points"
            found.add("polygon-unchecked", text)
            continue
        if crossing is not None:
            first, second = crossing
            text = f"the edges from points {first + 1} and {second + 1} of {len(points)} cross"
            found.add("polygon-self-intersecting", which + text)
    nested = polygon_within(polygons)
    if nested is not None:
        text = f"polygon {nested[0] + 1} of {len(polygons)} lies within polygon {nested[1] + 1}"
        found.add("polygon-within-polygon", f"{text}: it is filled, no hole")
    return found


def polygon_within(polygons: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """Positions of a polygon and of another one around all its points, or None; of one object."""
    if len(polygons) < 2:
        return None
    points = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
    low = np.array([own.min(axis=0) for own in points])
    high = np.array([own.max(axis=0) for own in points])
    for inner, own in enumerate(points):
        around = ((low < low[inner]) & (high > high[inner])).all(axis=1)
        for outer in np.flatnonzero(around).tolist():
            outline = shapely.polygons(points[outer])
            shapely.prepare(outline)
            if shapely.intersects_xy(outline, own).all():  # on the outline, too
                return inner, outer
    return None


def crossing_edges(points: np.ndarray) -> tuple[int, int] | None:
    """Two edges of a closed polygon that cross, or None.

    Edges that only touch or lie on each other do not cross. Two paths through one vertex do if
    the second leaves it on the other side of the first than it came from.

    Args:
        points: (N, 2) x and y in pixels.

    Returns:
        The positions of the edges' first points, the smaller first.

    Raises:
        TooManyPairs: if none of the first ``2**22`` pairs of edges with overlapping spans cross
            and there are more. Outlines of short edges have few such pairs: only with thousands
            of edges across the whole shape are there so many.
    """
    start = np.asarray(points, np.float64)
    at_vertex = _crossing_paths(start)
    if at_vertex is not None:
        return at_vertex
    along = np.roll(start, -1, axis=0) - start
    length = np.hypot(along[:, 0], along[:, 1])
    kept = np.flatnonzero(length > 0)
    # Edges can only cross where their spans in x overlap. Sorted by where a span begins, those
    # that begin within an edge's span follow that edge: few, where the edges are short.
    ends = start[kept, 0], (start + along)[kept, 0]
    order = np.argsort(np.minimum(*ends), kind="stable")
    left, right = np.minimum(*ends)[order], np.maximum(*ends)[order]
    kept = kept[order]
    start, along, length = start[kept], along[kept], length[kept]
    places = np.arange(len(kept))
    followers = np.searchsorted(left, right, side="right") - places - 1
    pairs_before = np.cumsum(followers) - followers
    total = int(followers.sum())
    for block in range(0, min(total, _MOST_PAIRS), _PAIRS):
        inside = (pairs_before < block + _PAIRS) & (pairs_before + followers > block)
        one = np.repeat(places[inside], followers[inside])
        first_pair = np.repeat(pairs_before[inside], followers[inside])
        number = np.arange(len(one)) + (pairs_before[inside][0] if len(one) else 0)
        other = one + 1 + number - first_pair
        mutual = _apart(start, along, length, one, other) & _apart(start, along, length, other, one)
        hits = np.flatnonzero(mutual)
        if len(hits):
            found = sorted((int(kept[one[hits[0]]]), int(kept[other[hits[0]]])))
            return found[0], found[1]
    if total > _MOST_PAIRS:
        raise TooManyPairs(f"{total} pairs of edges")
    return None


def _crossing_paths(points: np.ndarray) -> tuple[int, int] | None:
    """Two visits to one vertex, by position, whose paths cross there; else None."""
    kept = np.flatnonzero((points != np.roll(points, 1, axis=0)).any(axis=1))
    _, vertex, visits = np.unique(points[kept], axis=0, return_inverse=True, return_counts=True)
    vertex = vertex.ravel()
    if int((visits[visits > 1] ** 2).sum()) > _MOST_PAIRS:
        raise TooManyPairs("of paths through one vertex")
    before, after = np.roll(points[kept], 1, axis=0), np.roll(points[kept], -1, axis=0)
    for shared in np.flatnonzero(visits > 1):
        places = np.flatnonzero(vertex == shared)
        here = points[kept[places[0]]]
        ends = before[places] - here, after[places] - here
        for first, place in enumerate(places):
            sides = [
                _sides(end[first + 1 :], ends[0][first], ends[1][first]) for end in ends
            ]  # of where the other paths come from and go to
            hits = np.flatnonzero(sides[0] * sides[1] < 0)
            if len(hits):
                return int(kept[place]), int(kept[places[first + 1 + hits[0]]])
    return None


def _sides(points: np.ndarray, come: np.ndarray, go: np.ndarray) -> np.ndarray:
    """(P,) on which side of the path ``come`` → 0 → ``go`` points lie: 1, -1, or 0 if on it."""
    angle = np.arctan2(points[:, 1], points[:, 0])
    first, second = (np.arctan2(ray[1], ray[0]) for ray in (come, go))
    within = (angle - first) % (2 * np.pi) < (second - first) % (2 * np.pi)
    distance = np.minimum(*(_distance(points, ray) for ray in (come, go)))
    return np.where(distance > _DEPTH, np.where(within, 1, -1), 0)


def _distance(points: np.ndarray, ray: np.ndarray) -> np.ndarray:
    """(P,) of points to a ray from 0."""
    unit = ray / np.hypot(*ray)
    across = np.abs(points[:, 0] * unit[1] - points[:, 1] * unit[0])
    return np.where(points @ unit > 0, across, np.hypot(points[:, 0], points[:, 1]))


def _apart(
    start: np.ndarray, along: np.ndarray, length: np.ndarray, lines: np.ndarray, edges: np.ndarray
) -> np.ndarray:
    """(P,) whether both ends of an edge lie on two sides of a line, for P pairs by position."""
    offset = start[edges] - start[lines]
    normal = np.stack([-along[lines, 1], along[lines, 0]], axis=1) / length[lines, None]
    first = (offset * normal).sum(axis=1)
    second = first + (along[edges] * normal).sum(axis=1)
    return (np.minimum(first, second) < -_DEPTH) & (np.maximum(first, second) > _DEPTH)
