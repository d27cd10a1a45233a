import numpy as np
import pytest

from knet_run.tiles.grid import Axis, Grid


@pytest.mark.parametrize("length", [64, 65, 100, 127, 128, 129, 500, 1000])
@pytest.mark.parametrize("overlap", [0, 1, 13, 32])
def test_tiles_cover_a_side_and_share_what_was_asked_for(length, overlap):
    axis = Axis.of(length, 64, overlap)
    assert axis.size == 64
    assert axis.starts[0] == 0 and axis.starts[-1] + 64 == length
    for k in range(1, len(axis.starts)):
        assert axis.shared(k) >= overlap
    # no fewer would do
    assert len(axis.starts) == max(1, int(np.ceil((length - overlap) / (64 - overlap))))
    # every pixel is decided once, by a tile that sees it
    owners = np.zeros(length, int)
    for k, start in enumerate(axis.starts):
        core = axis.core(k)
        assert 0 <= core.start <= core.stop <= 64
        owners[start + core.start : start + core.stop] += 1
    assert (owners == 1).all()


def test_a_cut_lies_in_the_middle_of_what_is_shared():
    axis = Axis.of(112, 64, 16)
    assert (axis.starts, axis.cuts) == ((0, 48), (0, 56, 112))


def test_a_short_side_is_not_cut():
    grid = Grid.of((40, 300), (128, 128), 16)
    assert (grid.rows.size, grid.columns.size, len(grid)) == (40, 128, 3)
    assert list(grid) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [(31, 0, "32 pixels a side at least"), (100, 51, "0 pixels to half of a tile, 50"),
     (100, -1, "--overlap -1")],
)  # fmt: skip
def test_wrong_tiles(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        Grid.of((500, 500), (tile, tile), overlap)
