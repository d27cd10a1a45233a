"""Curves of a training from its metrics.json, also of one that was resumed."""

import json

import numpy as np
import pytest
from PIL import Image

from knet.training.curves import curves_png, draw_curves, read_curves


def lines(*values):
    return [json.dumps(value) for value in values]


def test_later_lines_count():
    first = lines(
        {"iteration": 19, "total_loss": 5.0, "lr": 0.1},
        {"iteration": 39, "total_loss": 4.0, "lr": 0.2},
        {"iteration": 39, "segm/AP": 10.0},
        {"iteration": 59, "total_loss": 3.0, "lr": 0.3},
    )
    assert read_curves(first) == {
        "total_loss": {19: 5.0, 39: 4.0, 59: 3.0},
        "lr": {19: 0.1, 39: 0.2, 59: 0.3},
        "segm/AP": {39: 10.0},
    }
    # resumed after 40 steps, behind half a line of the kill
    resumed = lines({"iteration": 44, "total_loss": 2.0}, {"iteration": 49, "segm/AP": 12.0})
    curves = read_curves([*first, '{"iteration": 79, "to' + resumed[0], *resumed])
    assert curves["total_loss"] == {19: 5.0, 39: 4.0, 44: 2.0}
    assert curves["lr"] == {19: 0.1, 39: 0.2}
    assert curves["segm/AP"] == {39: 10.0, 49: 12.0}
    # started anew
    assert read_curves([*first, *lines({"iteration": 0, "total_loss": 9.0})])["segm/AP"] == {}


def test_a_picture_of_whatever_there_is(tmp_path):
    source, out = tmp_path / "metrics.json", tmp_path / "curves.png"
    with pytest.raises(FileNotFoundError):
        draw_curves(source, out)
    assert not out.exists()
    sizes = set()
    pictures = []
    for content in ([], lines({"iteration": 19, "total_loss": 5.0, "lr": 0.1}),
                    lines({"iteration": 19, "total_loss": 5.0, "lr": 0.1, "segm/AP": 3.0,
                           "segm/AP-disc": 4.0, "other/name": 7.0})):  # fmt: skip
        source.write_text("\n".join(content))
        draw_curves(source, out)
        pictures.append(np.asarray(Image.open(out).convert("RGB")))
        sizes.add(pictures[-1].shape)
        assert out.read_bytes() == curves_png(source)  # the same in every run
    assert sizes == {(272, 960, 3)}
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1][:, 640:], pictures[2][:, 640:])
