"""Files that name classes."""

from __future__ import annotations

import pytest

from knet.data.defects import DataError
from knet.data.formats.class_list import LabelClass, find_classes, read_classes
from knet.data.formats.tree import Tree

RED, BLUE = (200, 0, 0), (0, 0, 200)
PLAIN = [LabelClass("road"), LabelClass("traffic light")]
NUMBERED = [LabelClass("road", 1), LabelClass("traffic light", 4)]
COLORED = [LabelClass("road", color=RED), LabelClass("traffic light", color=BLUE)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", "road\ntraffic light\n", PLAIN),
        ("classes.txt", "4: traffic light\n1: road\n", NUMBERED),
        ("classes.txt", "road 200 0 0\ntraffic light 0 0 200\n", COLORED),
        ("label_colors.txt", "200 0 0\troad\n0 0 200\t\ttraffic light\n", COLORED),
        ("labelmap.txt", "# a:b:c\nroad:200,0,0::\ntraffic light:0,0,200::\n", COLORED),
        ("class_dict.csv", "name,r,g,b\nroad,200,0,0\ntraffic light, 0,0, 200\n", COLORED),
        ("_classes.csv", "Pixel Value, Class\n1, road\n4, traffic light\n", NUMBERED),
        ("classes.csv", "road,200,0,0\ntraffic light,0,0,200\n", COLORED),
        ("classes.json", '["road", "traffic light"]', PLAIN),
        ("classes.json", '{"road": 1, "traffic light": 4}', NUMBERED),
        ("classes.json", '{"1": "road", "4": "traffic light"}', NUMBERED),
        ("classes.json", '{"road": [200, 0, 0], "traffic light": [0, 0, 200]}', COLORED),
        (
            "classes.json",
            '{"classes": [{"name": "road", "color": [200, 0, 0]}, '
            '{"name": "traffic light", "color": [0, 0, 200]}]}',
            COLORED,
        ),
    ],
)
def test_forms(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_classes(tmp_path / name) == expected
    assert find_classes(Tree(tmp_path)) == (name, expected)


def test_names_of_no_label():
    for name in ("Void", "un-labelled", "Unlabeled", "dont care", "__ignore__"):
        assert LabelClass(name).is_void == (name != "un-labelled")
    assert not LabelClass("road").is_void


def test_what_comes_twice_is_named(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("road\nroad\n")
    with pytest.raises(DataError, match="the name 'road' is that of two classes"):
        read_classes(path)
    path.write_text("road 1 1 1\nsky 1 1 1\n")
    with pytest.raises(DataError, match=r"the color \(1, 1, 1\) is that of two"):
        read_classes(path)


def test_a_table_of_pictures_is_no_list(tmp_path):
    (tmp_path / "labels.csv").write_text("filename,label\na.jpg,road\nb.jpg,road\n")
    assert find_classes(Tree(tmp_path)) is None


def test_no_file(tmp_path):
    (tmp_path / "readme.txt").write_text("road")
    assert find_classes(Tree(tmp_path)) is None
