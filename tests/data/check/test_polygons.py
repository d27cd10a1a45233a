"""Polygons that look wrong."""

import numpy as np
import pytest

from knet.data.check.polygons import (
    TooManyPairs,
    _crossing_paths,
    crossing_edges,
    polygon_warnings,
    polygon_within,
)


def brute_force_crosses(points) -> bool:
    """Whether two edges of a polygon have a common inner point, by solving for it."""
    edges = list(zip(points, np.roll(points, -1, axis=0)))
    for i, (a, b) in enumerate(edges):
        for c, d in edges[i + 1 :]:
            matrix = np.stack([b - a, c - d], axis=1)
            if abs(np.linalg.det(matrix)) > 1e-9:
                at = np.linalg.solve(matrix, c - a)
                if (at > 1e-6).all() and (at < 1 - 1e-6).all():
                    return True
    return False


def test_crossing_edges(monkeypatch):
    rng = np.random.default_rng(0)
    polygons = [rng.uniform(0, 100, (rng.integers(3, 9), 2)) for _ in range(150)]
    expected = [brute_force_crosses(points) for points in polygons]
    assert 0 < sum(expected) < len(expected)
    for pairs in (1 << 19, 2):  # at once, and in blocks
        monkeypatch.setattr("knet.data.check.polygons._PAIRS", pairs)
        assert [crossing_edges(points) is not None for points in polygons] == expected
    assert crossing_edges(np.array([[0, 0], [10, 10], [10, 0], [0, 10]])) == (0, 2)


def test_crossing_in_a_vertex():
    bow_tie = np.array([[0, 0], [5, 5], [10, 10], [10, 0], [5, 5], [0, 10]])
    assert crossing_edges(bow_tie) == (1, 4)
    assert crossing_edges(bow_tie[::-1] + 0.3) == (1, 4)
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(60):
        directions = rng.uniform(0, 2 * np.pi, 4)  # of the ends of two paths: 0 to 1, and 2 to 3
        a, b, c, d = 10 * np.stack([np.cos(directions), np.sin(directions)], axis=1)
        points = np.array([a, np.zeros(2), b, c, np.zeros(2), d])
        around = np.argsort(directions)
        expected = around[0] // 2 == around[2] // 2  # the paths take turns
        assert (_crossing_paths(points) is not None) == expected
        found.add(expected)
    assert found == {True, False}


@pytest.mark.parametrize(
    "points",
    [
        [[0, 0], [10, 0], [10, 10], [0, 10]],
        [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]],  # the first point again
        [[0, 0], [10, 0], [10, 0], [10, 10]],  # a point twice
        [[0, 0], [5, 5], [10, 0], [10, 10], [5, 5], [0, 10]],  # touches itself in a point
        [[0, 0], [10, 0], [10, 10], [10, 0]],  # goes back on itself
        [[5, 5], [0, 0], [5, 5], [10, 0], [5, 5], [9, 9], [0, 9]],  # touches thrice
        [[0, 0], [4, 4], [8, 0], [8, 9], [4, 4], [4, 4], [0, 9]],  # and stays there
        [[0, 0], [4, 0], [8, 0], [8, 9], [4, 0], [4, 0.001]],  # shallower than rounding
        [[3, 3], [3, 3], [3, 3]],
    ],
)
def test_touching_is_not_crossing(points):
    assert crossing_edges(np.array(points)) is None


def test_long_edges_are_compared_up_to_a_limit(monkeypatch):
    comb = np.array([[x, y] for y in range(60) for x in ((0, 100) if y % 2 else (100, 0))])
    comb = np.concatenate([comb * 1.0, [[-5, 59], [-5, -5], [105, -5]]])
    assert crossing_edges(comb) is None
    monkeypatch.setattr("knet.data.check.polygons._MOST_PAIRS", 100)
    with pytest.raises(TooManyPairs):
        crossing_edges(comb)
    inside = comb.ravel() + 5
    (defect,) = polygon_warnings([inside], (120, 120), "x.json", "image 1")
    assert defect.kind == "polygon-unchecked"
    assert defect.problem == "not checked for self-intersection: 123 points"


def test_polygon_within():
    outer, ring = [0, 0, 20, 0, 20, 20, 0, 20], [12, 12, 30, 12, 30, 30, 12, 30]
    notch = [0, 0, 20, 0, 20, 20, 10, 1, 0, 20]  # a V: what lies between its arms is outside
    inner = [8, 12, 12, 12, 10, 15]
    assert polygon_within([outer, ring]) is None
    assert polygon_within([ring, inner, outer]) == (1, 2)
    assert polygon_within([notch, inner]) is None
    arrow = [0, 0, 20, 0, 20, 20, 10, 10, 0, 20]  # whose inner corner the hole touches
    assert polygon_within([arrow, [5, 5, 10, 10, 15, 5]]) == (1, 0)
