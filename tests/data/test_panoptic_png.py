"""Panoptic PNGs."""

import numpy as np
from PIL import Image

from knet.data import read_panoptic_png, write_panoptic_png
from knet.data.panoptic_png import segment_defects


def test_png_round_trip(tmp_path):
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]])
    write_panoptic_png(str(tmp_path / "x.png"), ids)
    rgb = np.array(Image.open(tmp_path / "x.png")).astype(int)
    np.testing.assert_array_equal(rgb @ [1, 256, 65536], ids)
    read = read_panoptic_png(str(tmp_path / "x.png"))
    assert read.dtype == np.uint32
    np.testing.assert_array_equal(read, ids)


def test_png_with_alpha(tmp_path):
    rgba = np.full((2, 2, 4), [1, 2, 0, 7], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "x.png")
    assert (read_panoptic_png(str(tmp_path / "x.png")) == 513).all()


def test_many_unknown_ids_are_one_defect(tmp_path):
    ids = np.arange(2400, dtype=np.uint32).reshape(40, 60)
    (defect,), _ = segment_defects(ids, [], "x.png", "image 1")
    assert defect.problem.startswith("2399 segment ids (2399 pixels) are not in its segments_info")
