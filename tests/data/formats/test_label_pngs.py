"""Whether label PNGs number objects or classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knet.data.defects import DataError
from knet.data.formats import recognise

from .makers import COLORS, STEMS, instance_ids_unnamed, labels, numbers, picture, png

NUM_OBJECTS = sum(int(numbers(stem).max()) for stem in STEMS)


def objects_of(found, folder):
    data = found.prepare(folder)
    contents = [json.loads(Path(e["JSON_FILE"]).read_text()) for e in (data.train, data.val)]
    return sum(len(content["annotations"]) for content in contents)


def write(root, make, folder="masks"):
    for stem in STEMS:
        picture(root / "images" / f"{stem}.png", stem)
        png(root / folder / f"{stem}.png", make(stem))


def test_numbers_from_one_each_in_one_piece_are_objects(tmp_path):
    instance_ids_unnamed(tmp_path)
    (note,) = recognise(tmp_path).notes
    assert "taken for instance-id PNGs: 6 pictures" in note and "each number an object" in note
    assert "of 6 maps looked at, 6 hold 0 and the numbers 1 to n (n from 2 to 4)" in note


def test_a_list_of_one_class_names_the_objects(tmp_path):
    write(tmp_path / "data", numbers)
    (tmp_path / "data" / "classes.txt").write_text("nucleus\n")
    data = recognise(tmp_path / "data").prepare(tmp_path / "out")
    assert data.classes == ["nucleus"]
    content = json.loads(Path(data.train["JSON_FILE"]).read_text())
    assert content["categories"] == [{"id": 1, "name": "nucleus"}]


def test_a_list_of_several_classes_decides(tmp_path):
    write(tmp_path, numbers)
    (tmp_path / "classes.txt").write_text("ground\na\nb\nc\nd\n")
    found = recognise(tmp_path)
    assert found.format == "label PNGs" and "a file names several classes" in found.notes[0]
    with pytest.raises(DataError, match="for semantic segmentation, not for instance"):
        recognise(tmp_path, task="instance")


def test_a_folder_called_instances_decides(tmp_path):
    write(tmp_path, labels, folder="instance_masks")
    found = recognise(tmp_path)
    assert found.format == "instance-id PNGs" and "'instance'" in found.notes[0]


def test_gaps_and_pieces_are_classes(tmp_path):
    write(tmp_path / "gaps", lambda stem: numbers(stem) * 3)
    found = recognise(tmp_path / "gaps")
    assert found.format == "label PNGs" and "0 hold 0 and the numbers 1 to n" in found.notes[0]
    found = recognise(tmp_path / "gaps", task="instance")  # numbers of hidden objects are gaps, too
    assert "each number an object; the task 'instance' decides, although of 6" in found.notes[0]
    assert objects_of(found, tmp_path / "out") == NUM_OBJECTS

    def pieces(stem):
        values = numbers(stem)
        values[:, ::5] = values[::5] = 0
        return values

    write(tmp_path / "pieces", pieces)
    found = recognise(tmp_path / "pieces")
    assert found.format == "label PNGs" and "fall into several pieces" in found.notes[0]


def test_objects_are_one_class_of_a_semantic_task(tmp_path):
    instance_ids_unnamed(tmp_path / "data")
    found = recognise(tmp_path / "data", task="semantic")
    assert "one class, 'object', and 0 the background; the task 'semantic'" in found.notes[0]
    data = found.prepare(tmp_path / "out")
    assert data.classes == ["background", "object"]
    path = Path(data.train["SEM_SEG_ROOT"])
    map_file = min(path.rglob("*.png"))
    stem = next(stem for stem in STEMS if stem in map_file.name)
    assert np.array_equal(np.array(Image.open(map_file)), numbers(stem) > 0)


def test_masks_of_two_values_number_no_objects(tmp_path):
    write(tmp_path, lambda stem: (numbers(stem) > 0).astype(np.uint8) * 255)
    assert recognise(tmp_path).task == "semantic"
    with pytest.raises(DataError, match="hold 0 and 255 alone, which do for semantic"):
        recognise(tmp_path, task="instance")


def test_numbers_above_255_are_objects(tmp_path):
    write(tmp_path, lambda stem: numbers(stem).astype(np.uint16) * 300)
    found = recognise(tmp_path)
    assert found.task == "instance" and "values above 255" in found.notes[0]


def test_a_colour_for_each_object(tmp_path):
    palette = np.array([*COLORS, (0, 90, 0), (90, 90, 0)], np.uint8)
    write(tmp_path / "data", lambda stem: palette[numbers(stem)])
    found = recognise(tmp_path / "data", task="instance")
    assert objects_of(found, tmp_path / "out") == NUM_OBJECTS


def test_counterparts_that_lack_are_counted(tmp_path):
    write(tmp_path, labels)
    (tmp_path / "images" / f"{STEMS[0]}.png").unlink()
    (tmp_path / "masks" / f"{STEMS[1]}.png").unlink()
    notes = recognise(tmp_path).notes
    assert notes[1:] == [
        "pictures without a label map: 1, not used",
        f"label maps without a picture: 1, not used, first masks/{STEMS[0]}.png",
    ]


def test_names_that_do_not_pair(tmp_path):
    for stem in STEMS:
        picture(tmp_path / "images" / f"{stem}.png", stem)
        png(tmp_path / "masks" / f"other{stem}.png", labels(stem))
    with pytest.raises(DataError, match="but no two have one name; a label map is called as"):
        recognise(tmp_path)
