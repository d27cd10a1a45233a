"""Every format: recognised, made into data sets, checked, and scored with its own labels."""

from __future__ import annotations

import json
import shutil

import pytest
from detectron2.data import DatasetCatalog

from knet.data.defects import DataError
from knet.data.formats import recognise
from knet.errors import UserError

from . import makers
from .scoring import defects, register, score

ALL = [
    *((name, None) for name in makers.MAKERS),
    *((name, "semantic") for name in ("coco", "yolo", "labelme", "voc")),
    ("voc", "panoptic"),
]


@pytest.mark.parametrize(("name", "task"), ALL)
def test_a_folder_becomes_data_sets_whose_labels_score_100(name, task, tmp_path):
    make, form, usual, classes = makers.MAKERS[name]
    make(tmp_path / "data")
    found = recognise(tmp_path / "data", task=task)
    assert (found.format, found.task) == (form, task or usual)
    assert found.num_images == 6
    data = found.prepare(tmp_path / "out")
    if task is None:
        assert data.classes == classes
    elif task == "semantic":
        assert data.classes == ["background", *makers.CLASSES]
    cfg = register(data)
    names = [data.train["NAME"], data.val["NAME"]]
    assert names == ["data_train", "data_val"]
    counts = [len(DatasetCatalog.get(name)) for name in names]
    assert sum(counts) == 6 and min(counts) > 0
    assert defects(data) == []
    assert score(cfg, names[1], data.task, tmp_path / "scores") == pytest.approx(100)


@pytest.mark.parametrize("make", [makers.cityscapes, makers.cityscapes_polygons])
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_cityscapes(make, task, tmp_path):
    make(tmp_path / "data")
    found = recognise(tmp_path / "data", task=task)
    assert (found.format, found.num_images) == ("Cityscapes", 6)
    data = found.prepare(tmp_path / "out")
    assert len(data.classes) == (8 if task == "instance" else 19)
    cfg = register(data)
    # 17 of the classes are not in these scenes
    assert all("no label shows" in text for text in defects(data))
    assert len(DatasetCatalog.get("data_train")) == 4
    assert score(cfg, "data_val", task, tmp_path / "scores") == pytest.approx(100)


def test_converted_files_beside_a_tree_change_nothing(tmp_path):
    makers.cityscapes(tmp_path)
    content = makers.coco_content(makers.STEMS)
    makers.write_json(tmp_path / "gtFine" / "cityscapes_panoptic_train.json", content)
    assert recognise(tmp_path).format == "Cityscapes"


def test_task_decides_on_numbers_that_may_be_both(tmp_path):
    for stem in makers.STEMS:
        makers.picture(tmp_path / "images" / f"{stem}.png", stem)
        values = makers.numbers(stem)
        values[values > 2] = 0
        makers.png(tmp_path / "masks" / f"{stem}.png", values)
    assert recognise(tmp_path).format == "label PNGs"
    found = recognise(tmp_path, task="instance")
    assert found.format == "instance-id PNGs"
    assert "which may be classes or objects" in found.notes[0]


def test_a_folder_for_validation(tmp_path):
    makers.yolo_unsplit(tmp_path / "a")
    makers.yolo_unsplit(tmp_path / "b")
    found = recognise(tmp_path / "a", val=tmp_path / "b")
    assert found.num_images == 12
    data = found.prepare(tmp_path / "out")
    register(data)
    assert [len(DatasetCatalog.get(name)) for name in ("a_train", "a_val")] == [6, 6]
    (tmp_path / "b" / "classes.txt").write_text("cross\nwheel\n")
    with pytest.raises(DataError, match=r"other classes than .*: wheel is not among cross, square"):
        recognise(tmp_path / "a", val=tmp_path / "b").prepare(tmp_path / "out")
    makers.labelme(tmp_path / "c")
    with pytest.raises(DataError, match=r"YOLO segmentation, but .*c, .* is labelme JSON"):
        recognise(tmp_path / "a", val=tmp_path / "c")


def test_bytes_are_the_same_every_time(tmp_path):
    makers.voc(tmp_path / "data")
    outputs = []
    for name in ("first", "second"):
        for task in ("instance", "panoptic", "semantic"):
            recognise(tmp_path / "data", task=task).prepare(tmp_path / name / task)
        paths = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        outputs.append({p.relative_to(tmp_path / name): p.read_bytes() for p in paths})
    assert outputs[0].keys() == outputs[1].keys()
    for path, content in outputs[0].items():
        other = outputs[1][path]
        assert content == other.replace(b"second", b"first"), path


def test_a_wrong_folder_gets_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no file"):
        recognise(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing of use")
    with pytest.raises(DataError, match=r"holds no picture \(1 .txt\); recognised are COCO"):
        recognise(tmp_path)
    for stem in makers.STEMS:
        makers.picture(tmp_path / f"{stem}.jpg", stem)
    with pytest.raises(DataError, match="holds 6 pictures and no labels that are known"):
        recognise(tmp_path)
    with pytest.raises(UserError, match="the task is 'boxes'"):
        recognise(tmp_path, task="boxes")


def test_a_mixed_folder_gets_one_sentence(tmp_path):
    makers.labelme(tmp_path)
    makers.yolo(tmp_path)
    with pytest.raises(DataError, match="YOLO segmentation and labelme JSON at once"):
        recognise(tmp_path)


def test_a_task_that_the_labels_do_not_do_for(tmp_path):
    makers.binary(tmp_path)
    with pytest.raises(DataError, match="for semantic segmentation, not for instance"):
        recognise(tmp_path, task="instance")


def test_no_picture_is_decoded_for_recognition(tmp_path):
    makers.yolo(tmp_path / "data")
    for path in tmp_path.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-200])  # headers are whole
    found = recognise(tmp_path / "data")
    assert found.num_images == 6
    data = found.prepare(tmp_path / "out")
    content = json.loads((tmp_path / "out" / f"{data.val['NAME']}.json").read_text())
    assert {image["width"] for image in content["images"]} == {makers.WIDTH}


def test_copies_of_pictures_are_never_made(tmp_path):
    makers.colors(tmp_path / "data")
    recognise(tmp_path / "data").prepare(tmp_path / "out")
    written = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {".png", ".txt"}
    shutil.rmtree(tmp_path / "out")
    makers.coco(tmp_path / "coco")
    recognise(tmp_path / "coco").prepare(tmp_path / "out")
    assert not (tmp_path / "out").exists()  # COCO's files are used as they are


@pytest.mark.parametrize("output", ["data/out", "data", "val/out"])
def test_nothing_is_written_into_the_data(tmp_path, output):
    """The next call would take it for data."""
    makers.yolo(tmp_path / "data")
    makers.yolo(tmp_path / "val")
    found = recognise(tmp_path / "data", val=tmp_path / "val")
    with pytest.raises(UserError, match=f"{output} lies in the data, .*: name another --output"):
        found.prepare(tmp_path / output)
    assert not (tmp_path / output).exists() or output == "data"


def test_check_and_training_divide_alike(tmp_path):
    makers.yolo_unsplit(tmp_path / "data")
    notes = recognise(tmp_path / "data").prepare(tmp_path / "out").notes
    assert any("(seed 1)" in note for note in notes)  # the seed of `train_folder`
