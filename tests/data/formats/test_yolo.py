"""What is particular to YOLO's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from knet.data.defects import DataError
from knet.data.formats import recognise

from .makers import CLASSES, STEMS, yolo, yolo_unsplit


def prepared(root):
    data = recognise(root).prepare(root.parent / "out")
    return data, json.loads(Path(data.train["JSON_FILE"]).read_text())


def test_boxes_alone_are_refused(tmp_path):
    yolo(tmp_path)
    for path in (tmp_path / "labels").rglob("*.txt"):
        path.write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"its labels are boxes .5 numbers a line, as in labels"):
        recognise(tmp_path)


def test_a_box_among_polygons_is_its_rectangle(tmp_path):
    yolo_unsplit(tmp_path / "data")
    for stem in STEMS:
        with open(tmp_path / "data" / "labels" / f"{stem}.txt", "a") as stream:
            stream.write("1 0.5 0.9 0.25 0.1\n")
    data, content = prepared(tmp_path / "data")
    assert "some labels are boxes; their rectangles stand for the masks" in data.notes
    last = [a for a in content["annotations"] if a["image_id"] == 1][-1]
    assert last["segmentation"] == [[24.0, 40.8, 40.0, 40.8, 40.0, 45.6, 24.0, 45.6]]


def test_pictures_without_a_file_are_background_and_counted(tmp_path):
    yolo(tmp_path / "data")
    (tmp_path / "data" / "labels" / "train" / f"{STEMS[0]}.txt").unlink()
    (tmp_path / "data" / "labels" / "train" / f"{STEMS[1]}.txt").write_text("")
    data, content = prepared(tmp_path / "data")
    assert "pictures without a label file: 1; they count as background" in data.notes
    assert "data_train: pictures without an object: 2 of 4; they show background" in data.notes
    assert len(content["images"]) == 4


def test_a_class_without_an_object_is_kept_and_said(tmp_path):
    yolo(tmp_path / "data")
    text = (tmp_path / "data" / "data.yaml").read_text()
    (tmp_path / "data" / "data.yaml").write_text(text + "  2: wheel\n")
    data, content = prepared(tmp_path / "data")
    assert data.classes == [*CLASSES, "wheel"]
    assert [c["name"] for c in content["categories"]] == data.classes
    assert "data_train: no label shows wheel; kept as a class" in data.notes


def test_lists_of_pictures(tmp_path):
    yolo_unsplit(tmp_path / "data")
    for part, stems in (("train", STEMS[1:]), ("val", STEMS[:1])):
        lines = "\n".join(f"./images/{stem}.jpg" for stem in stems)
        (tmp_path / "data" / f"{part}.txt").write_text(lines)
    (tmp_path / "data" / "data.yaml").write_text(
        f"train: train.txt\nval: val.txt\nnames: {CLASSES}\n"
    )
    _, content = prepared(tmp_path / "data")
    assert [i["file_name"] for i in content["images"]] == [f"images/{s}.jpg" for s in STEMS[1:]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 0.1 0.1 0.2 0.1 0.2 0.2", "class 7, but there are 2, from 0; name it in data.yaml"),
        ("0 10 10 20 10 20 20", "coordinates from 10 to 20; they are shares of width and height"),
        ("0 0.1 0.1 0.2", "3 coordinates are no polygon"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3", "7 coordinates are no polygon"),
        ("leaf 0.1 0.1 0.2 0.1 0.2 0.2", "is not a class number and coordinates"),
    ],
)
def test_broken_lines_are_named(line, message, tmp_path):
    yolo(tmp_path / "data")
    path = tmp_path / "data" / "labels" / "train" / f"{STEMS[1]}.txt"
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(DataError, match=rf"{path.name}: line \d: .*{message}"):
        prepared(tmp_path / "data")


def test_numbers_of_a_dict_must_be_whole(tmp_path):
    yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: {1: cross, 2: square}\n")
    with pytest.raises(DataError, match="must number the classes from 0 to 1, it has"):
        recognise(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cross, square\n")
    with pytest.raises(DataError, match=r"data.yaml is not YAML: .*; correct it"):
        recognise(tmp_path)
