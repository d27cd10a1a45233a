"""Clips of moving things: exact truth, and things that really vanish."""

import itertools

import numpy as np
import pytest

from knet.data import STUFF_NAMES, THING_NAMES
from knet.data.shapes.clip import draw_clip

LENGTH = 30


@pytest.fixture(scope="module")
def clips():
    return [draw_clip(3, index, num_frames=LENGTH) for index in range(4)]


def visible(clip):
    """(T, things) pixels of each thing."""
    count = len(clip.names)
    areas = np.stack([np.bincount(frame.ravel(), minlength=count) for frame in clip.segments])
    return areas[:, sum(name in STUFF_NAMES for name in clip.names) :]


def test_a_clip_is_a_function_of_its_arguments(clips):
    again = draw_clip(3, 1, num_frames=LENGTH)
    np.testing.assert_array_equal(again.images, clips[1].images)
    np.testing.assert_array_equal(again.segments, clips[1].segments)
    assert again.names == clips[1].names and again.hidings == clips[1].hidings
    other = draw_clip(3, 1, num_frames=LENGTH, split="other")
    assert (other.images != clips[1].images).mean() > 0.5


def test_things_vanish_whole_and_come_back(clips):
    for clip in clips:
        areas = visible(clip)
        hidden = 0
        for line in areas.T:
            seen = np.flatnonzero(line >= 40)
            hidden += any((line[a:b] == 0).any() for a, b in itertools.pairwise(seen))
        assert clip.hidings >= 2 and hidden >= 1


def test_things_move_and_stuff_stays(clips):
    for clip in clips:
        assert clip.images.shape == (LENGTH, 96, 96, 3) and clip.images.dtype == np.uint8
        num_stuff = sum(name in STUFF_NAMES for name in clip.names)
        stuff = np.where(clip.segments < num_stuff, clip.segments, 255)
        for before, after in itertools.pairwise(stuff):
            both = (before < 255) & (after < 255)
            assert (before[both] == after[both]).all()
        for thing in range(num_stuff, len(clip.names)):
            places = [np.argwhere(frame == thing) for frame in clip.segments]
            centres = np.array([p.mean(0) for p in places if len(p) > 80])
            assert len(centres) == 0 or np.ptp(centres, axis=0).max() > 3
        # a thing in an area of its own colours the picture: the label is where it is drawn
        shades = [
            clip.images[0][clip.segments[0] == k].mean(0) for k in np.unique(clip.segments[0])
        ]
        assert len(np.unique(np.round(shades), axis=0)) == len(shades)


def test_classes_do_not_tell_things_apart(clips):
    for clip in clips:
        things = [name for name in clip.names if name in THING_NAMES]
        assert 3 <= len(things) <= 4 and len(set(things)) == 2
    clip = draw_clip(3, 0, num_frames=LENGTH, things=("disc",))
    assert {name for name in clip.names if name in THING_NAMES} == {"disc"}


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"size": 20}, {"num_frames": 5}])
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match="need seed"):
        draw_clip(**{"seed": 0, "index": 0, **arguments})
    with pytest.raises(ValueError, match=r"not \('hexagon',\)"):
        draw_clip(0, 0, things=("hexagon",))
