"""Pictures for checks and ranges."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from knet.errors import UserError
from knet.export.make import Choices
from knet.export.records import Records

from .models import small_cfg, small_predictor


@pytest.fixture(scope="module")
def predictor():
    return small_predictor(small_cfg("instance"), "instance")


def test_scenes_are_drawn_where_no_pictures_are_given(predictor):
    records = Records(predictor, Choices(), pictures=[], data="")
    assert records.described == "4 drawn scenes (--pictures takes yours)"
    sizes = [(record["height"], record["width"]) for record in records.few()]
    assert sizes == [(96, 96), (137, 144), (226, 240), (299, 320)]
    with pytest.raises(UserError, match="int8 takes its ranges from pictures: name some"):
        records.require_given()


def test_pictures_are_spread_over_all_that_are_given(predictor, tmp_path):
    for i in range(150):
        Image.new("RGB", (20, 17 + i)).save(tmp_path / f"{i:03d}.png")
    records = Records(predictor, Choices(), pictures=[str(tmp_path)], data="")
    assert [record["height"] for record in records.few()] == [17, 54, 91, 128]
    heights = [record["height"] for record in records.many()]
    assert len(heights) == 64 and heights[:3] == [17, 19, 21]
    records.require_given()


def test_a_graph_of_one_size_gets_it_and_so_does_the_model(predictor):
    choices = Choices(size=(64, 80), dynamic=("height",))
    record = next(Records(predictor, choices, pictures=[], data="").few())
    assert tuple(record["image"].shape) == (3, 96, 80) and record["width"] == 96
    choices = Choices(takes_picture=True)
    record = next(Records(predictor, choices, pictures=[], data="").few())
    assert record["picture"].shape == (96, 96, 3) and record["picture"].dtype == np.uint8


def test_what_stands_for_nothing_is_named(predictor, tmp_path):
    with pytest.raises(UserError, match=r"none\.png: there is no such file"):
        Records(predictor, Choices(), pictures=[str(tmp_path / "none.png")], data="")
    with pytest.raises(UserError, match="the data set 'unheard' is not registered"):
        Records(predictor, Choices(), pictures=[], data="unheard")
