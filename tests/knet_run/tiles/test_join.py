import numpy as np
import pytest

from knet_run.tiles.grid import Grid
from knet_run.tiles.join import join_tiles
from knet_run.tiles.segments import SegmentClass, Segmenter, TileSegments

from .scenes import CLASSES, by_colour, disc


def joined(pixels, *, tile=64, overlap=16, segment=by_colour, classes=CLASSES):
    """The map of segments (H, W) and what `Joiner.finish` gives."""
    return join_tiles(pixels, Segmenter(classes, segment), tile=(tile, tile), overlap=overlap)


def blue(height, width):
    return np.full((height, width, 3), (0, 0, 200), np.uint8)


def test_an_object_across_four_tiles_is_one_object():
    pixels = blue(112, 112)
    inside = disc((112, 112), (55, 57), 30)
    pixels[inside] = (255, 0, 0)
    ids, done = joined(pixels)
    assert len(Grid.of((112, 112), (64, 64), 16)) == 4
    assert [CLASSES[k].name for k in done.classes] == ["disc", "sky"]
    assert np.array_equal(ids == 1, inside)  # all of its pixels, and no others
    assert done.areas.tolist() == [inside.sum(), 112 * 112 - inside.sum()]
    assert done.scores == pytest.approx([1.0, 200 / 255])


def test_without_overlap_nothing_is_joined_but_stuff():
    pixels = blue(128, 128)
    pixels[disc((128, 128), (64, 64), 30)] = (255, 0, 0)
    _, done = joined(pixels, overlap=0)
    assert [CLASSES[k].name for k in done.classes].count("disc") == 4
    assert [CLASSES[k].name for k in done.classes].count("sky") == 1


def test_a_chain_over_many_tiles_and_its_neighbours():
    pixels = blue(150, 400)
    pixels[70:76] = (255, 0, 0)  # a band over all columns
    pixels[82:88] = (255, 0, 0)  # and another one beside it
    ids, done = joined(pixels)
    assert [CLASSES[k].name for k in done.classes] == ["sky", "disc", "disc"]
    assert len(np.unique(ids[70:76])) == len(np.unique(ids[82:88])) == 1
    assert ids[72, 0] != ids[84, 0]


def test_a_thing_that_is_seen_twice_counts_once():
    pixels = np.zeros((64, 112, 3), np.uint8)
    pixels[20:30, 50:60] = (255, 0, 0)  # in the zone of both tiles, across its middle
    ids, done = joined(pixels)
    assert done.areas.tolist() == [100] and (ids > 0).sum() == 100
    assert ids[0, 0] == 0  # void stays void


def two_views(*found):
    """A segmenter of tiles in turn."""
    views = iter(found)
    return lambda pixels: next(views)


def view(box, label, score):
    ids = np.zeros((64, 64), np.int32)
    ids[box] = 1
    return TileSegments(ids, np.array([label]), np.array([score]))


def test_two_views_of_a_thing_need_not_agree_on_all_of_it():
    pixels = np.zeros((64, 112, 3), np.uint8)
    left = view(np.s_[0:20, 40:64], 0, 0.6)  # 20 x 16 pixels of the zone
    for rows, expected in ((np.s_[5:20], 1), (np.s_[11:20], 2)):  # 15 and 9 of its 20 rows
        right = view(np.s_[rows, 0:30], 2, 0.9)
        _, done = joined(pixels, segment=two_views(left, right))
        assert len(done.areas) == expected
    # the class and score of most of it: 320 pixels of a disc, 5 x 8 where the right tile sees
    # nothing, 15 x 22 of a ring
    right = view(np.s_[5:20, 0:30], 2, 0.9)
    _, done = joined(pixels, segment=two_views(left, right))
    assert done.areas.tolist() == [20 * 16 + 5 * 8 + 15 * 22]
    assert CLASSES[done.classes[0]].name == "ring"
    assert done.scores[0] == pytest.approx((360 * 0.6 + 330 * 0.9) / 690)


def test_a_thing_and_stuff_are_never_one():
    pixels = np.zeros((64, 112, 3), np.uint8)
    box = np.s_[0:20, 40:64], np.s_[0:20, 0:30]
    views = two_views(view(box[0], 0, 0.6), view(box[1], 1, 0.9))
    _, done = joined(pixels, segment=views)
    assert done.classes.tolist() == [0, 1]


def test_a_fragment_that_no_tile_decides_is_gone():
    pixels = np.zeros((64, 112, 3), np.uint8)
    grass = TileSegments(np.ones((64, 64), np.int32), np.array([1]), np.array([0.5]))
    # the right tile alone sees a thing, in the half of the zone that is the left one's
    _, done = joined(pixels, segment=two_views(grass, view(np.s_[:, 0:8], 0, 0.9)))
    assert done.classes.tolist() == [1]


@pytest.mark.parametrize("turned", [False, True])
def test_who_sees_a_thing_whole_decides_all_of_it(turned):
    """The zone is columns 48 to 63, its middle 56; of the right tile the columns 0 to 15."""

    def views(*found):
        if not turned:
            return two_views(*found), np.zeros((64, 112, 3), np.uint8)
        found = [TileSegments(f.ids.T.copy(), f.classes, f.scores) for f in found]
        return two_views(*found), np.zeros((112, 64, 3), np.uint8)

    def areas(*found):
        segment, pixels = views(*found)
        ids, done = joined(pixels, segment=segment)
        return ids.T if turned else ids, done.areas.tolist()

    empty = TileSegments(np.zeros((64, 64), np.int32), np.zeros(0, np.int64), np.zeros(0))
    thing, grass = (
        np.s_[10:20, 2:12],
        TileSegments(np.ones((64, 64), np.int32), *[np.array([1])] * 2),
    )
    # one tile alone sees it, across the middle and whole: none of it is lost
    ids, found = areas(empty, view(thing, 0, 0.9))
    assert found == [100] and (ids[10:20, 50:60] == 1).all()
    # grass, where the other one sees nothing, is not cut in the middle either
    ids, found = areas(grass, view(thing, 0, 0.9))
    assert found == [64 * 64 - 100, 100]
    ids, found = areas(view(np.s_[10:20, 50:60], 0, 0.9), grass)
    assert found == [100, 64 * 64 - 100]
    ids, found = areas(grass, empty)
    assert found == [64 * 64] and (ids[:, 48:64] == 1).all()
    # cut by the border of its tile: up to the middle, or to where the other one sees something
    ids, found = areas(grass, view(np.s_[10:20, 0:12], 0, 0.9))
    assert found == [64 * 64 - 40, 40]
    ids, found = areas(empty, view(np.s_[10:20, 0:12], 0, 0.9))
    assert found == [120]
    # a piece of it is seen as something else, which its border cuts
    ids, found = areas(view(np.s_[10:13, 40:64], 2, 0.5), view(thing, 0, 0.9))
    assert found == [3 * 14, 100]
    assert (ids[10:20, 50:60] == 2).all() and ids[10, 62] == 1


def test_classes_without_things_keep_their_numbers():
    classes = [SegmentClass(k, str(k), False, (0, 0, 0)) for k in range(3)]
    pixels = np.zeros((64, 112, 3), np.uint8)
    views = two_views(view(np.s_[:, :], 2, 0.5), view(np.s_[:, :], 1, 0.25))
    ids, done = joined(pixels, segment=views, classes=classes)
    assert ids[0, 0] == 3 and ids[0, -1] == 2
    assert done.classes.tolist() == [0, 1, 2]
    assert done.areas.tolist() == [0, 56 * 64, 56 * 64]
    assert done.scores == pytest.approx([0, 0.25, 0.5])
