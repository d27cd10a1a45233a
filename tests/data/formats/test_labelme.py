"""What is particular to labelme's files."""

from __future__ import annotations

import json
import math

import pytest

from knet.data.defects import DataError
from knet.data.formats import recognise
from knet.data.formats.labelme import LabelmeSource
from knet.data.formats.objects import measure
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree

from .makers import HEIGHT, STEMS, WIDTH, labelme, picture, write_json

SIZE = {"imageHeight": HEIGHT, "imageWidth": WIDTH}


def objects(root, *shapes):
    picture(root / "a_00.jpg", STEMS[0])
    write_json(root / "a_00.json", {"shapes": shapes, "imagePath": "a_00.jpg", **SIZE})
    source = LabelmeSource(Tree(root))
    return source.objects(Item("a_00.jpg", "a_00.json"))[1], source.notes


def shape(kind, *points, label="leaf", group=None):
    return {"label": label, "points": list(points), "shape_type": kind, "group_id": group}


def test_circle_and_rectangle(tmp_path):
    found, _ = objects(
        tmp_path, shape("circle", [30, 24], [30, 34]), shape("rectangle", [20, 9], [4, 3])
    )
    areas = [measure(o.mask, (HEIGHT, WIDTH))["area"] for o in found]
    assert areas[0] == pytest.approx(math.pi * 100, rel=0.03) and areas[1] == 16 * 6


def test_a_group_is_one_object_and_the_rest_is_said(tmp_path):
    corner = [[0, 0], [8, 0], [8, 8]]
    far = [[40, 20], [50, 20], [50, 30]]
    found, notes = objects(
        tmp_path,
        shape("polygon", *corner, group=1),
        shape("polygon", *far, group=1),
        shape("polygon", *far, label="stem", group=1),
        shape("line", [0, 0], [5, 5]),
        shape("polygon", *far, label="__ignore__"),
    )
    assert [(o.name, len(o.mask)) for o in found] == [("leaf", 2), ("stem", 1)]
    assert notes == ["labelme's shapes of kind line: not used", "labelme's __ignore__: not used"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (shape("polygon", [0, 0], [1, 1]), "shape 1: a polygon of 2 points; remove the shape"),
        (shape("polygon", [0, 0], [1, "x"], [2, 2]), "its points are not pairs of numbers"),
        (shape("polygon", [0, 0], [1, 1], [2, 0], label=""), "its label is ''; name it"),
        ({**shape("mask", [0, 0], [1, 1]), "mask": "no png"}, "its mask cannot be read"),
    ],
)
def test_broken_shapes_are_named(broken, message, tmp_path):
    with pytest.raises(DataError, match=rf"a_00.json: shape 1: .*{message.split(': ')[-1]}"):
        objects(tmp_path, broken)


def test_a_picture_of_another_size(tmp_path):
    labelme(tmp_path / "data")
    path = tmp_path / "data" / f"{STEMS[0]}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "imageHeight": 99}))
    with pytest.raises(DataError, match=r"was made for 64x99 pixels, its picture .* has 64x48"):
        recognise(tmp_path / "data").prepare(tmp_path / "out")


def test_pictures_elsewhere_and_none(tmp_path):
    labelme(tmp_path / "data")
    for path in list((tmp_path / "data").glob("*.jpg")):
        (tmp_path / "data" / "photos").mkdir(exist_ok=True)
        path.rename(tmp_path / "data" / "photos" / path.name)
    picture(tmp_path / "data" / "photos" / "bare_00.jpg", STEMS[0])
    found = recognise(tmp_path / "data")
    assert found.num_images == 7
    assert "pictures without a JSON file: 1; they count as background" in found.notes
    for path in (tmp_path / "data" / "photos").glob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="holds 6 files of labelme JSON, but not their pictures"):
        recognise(tmp_path / "data")
