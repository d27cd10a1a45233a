"""What is particular to COCO's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from knet.data.defects import DataError
from knet.data.formats import recognise

from .makers import (
    CLASSES,
    STEMS,
    coco,
    coco_content,
    cvat,
    panoptic,
    picture,
    roboflow,
    write_json,
)


def content_of(entry):
    return json.loads(Path(entry["JSON_FILE"]).read_text(encoding="utf-8"))


def test_files_that_can_be_used_are_named_as_they_are(tmp_path):
    root = tmp_path / "data"
    coco(root)
    data = recognise(root).prepare(tmp_path / "out")
    assert data.val["JSON_FILE"] == str(root / "annotations" / "instances_val2017.json")
    assert data.val["IMAGE_ROOT"] == str(root / "val2017")


def test_roboflows_empty_class_is_left_out_and_said(tmp_path):
    roboflow(tmp_path / "data")
    data = recognise(tmp_path / "data").prepare(tmp_path / "out")
    assert any(note.startswith("shapes: a class without an annotation") for note in data.notes)
    assert [c["name"] for c in content_of(data.train)["categories"]] == CLASSES


def test_a_part_is_split_off_with_whole_annotations(tmp_path):
    cvat(tmp_path / "data")
    data = recognise(tmp_path / "data").prepare(tmp_path / "out", val_share=0.4)
    whole = coco_content(STEMS)["annotations"]
    halves = [content_of(entry) for entry in (data.train, data.val)]
    assert sum(len(half["annotations"]) for half in halves) == len(whole)
    names = [{image["file_name"] for image in half["images"]} for half in halves]
    assert all(names) and not names[0] & names[1]
    assert names[0] | names[1] == {f"{stem}.jpg" for stem in STEMS}


def test_panoptic_part_is_split_off(tmp_path):
    panoptic(tmp_path / "data")
    for path in (tmp_path / "data").rglob("*val*"):
        path.rename(path.with_name(path.name.replace("val", "unused")))
    (tmp_path / "data" / "annotations" / "panoptic_unused.json").unlink()
    data = recognise(tmp_path / "data").prepare(tmp_path / "out")
    images = [json.loads(Path(e["PANOPTIC_JSON"]).read_text()) for e in (data.train, data.val)]
    assert sorted(len(content["annotations"]) for content in images) in ([1, 3], [2, 2])


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_panoptic_labels_do_for_every_task(task, tmp_path):
    panoptic(tmp_path / "data")
    data = recognise(tmp_path / "data", task=task).prepare(tmp_path / "out")
    assert (data.task, data.val["FORMAT"]) == (task, "coco_panoptic")


def test_names_without_their_folder_are_corrected(tmp_path):
    content = coco_content(STEMS, "C:\\label\\")
    write_json(tmp_path / "data" / "labels.json", content)
    for k, stem in enumerate(STEMS):
        picture(tmp_path / "data" / f"batch_{k % 2}" / f"{stem}.jpg", stem)
    data = recognise(tmp_path / "data").prepare(tmp_path / "out")
    names = {i["file_name"] for e in (data.train, data.val) for i in content_of(e)["images"]}
    assert names == {f"batch_{k % 2}/{stem}.jpg" for k, stem in enumerate(STEMS)}
    assert "the names of 6 pictures in labels.json were corrected to where they are" in data.notes


def test_another_order_of_classes_is_brought_in_line(tmp_path):
    coco(tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 8, "name": CLASSES[1]}, {"id": 9, "name": CLASSES[0]}]
    for annotation in content["annotations"]:
        annotation["category_id"] = {1: 9, 2: 8}[annotation["category_id"]]
    path.write_text(json.dumps(content))
    data = recognise(tmp_path / "data").prepare(tmp_path / "out")
    expected = coco_content(STEMS[4:])
    found = content_of(data.val)
    assert [c["name"] for c in found["categories"]] == CLASSES
    classes = [a["category_id"] for a in found["annotations"]]
    assert classes == [a["category_id"] for a in expected["annotations"]]
    content["annotations"][0]["category_id"] = 1  # of no class, but of one after the change
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotation 1: category_id 1 is unknown; add the"):
        recognise(tmp_path / "data").prepare(tmp_path / "out")


def test_pictures_without_annotation_are_counted(tmp_path):
    coco(tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
    path.write_text(json.dumps(content))
    notes = recognise(tmp_path / "data").prepare(tmp_path / "out").notes
    assert "data_val: pictures without an annotation: 1 of 2; they show background" in notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [a.pop("segmentation") for a in c["annotations"]], "have boxes only; K-Net"),
        (lambda c: c["images"][0].pop("file_name"), r"images\[0\]: lacks file_name"),
        (lambda c: c["categories"][0].pop("name"), r"categories\[0\]: lacks name"),
        (lambda c: c["annotations"].append(7), r"annotations\[\d+\]: is a int, not an object"),
        (
            lambda c: [i.update(file_name=f"x{i['id']}.jpg") for i in c["images"]],
            r"none of the 6 pictures that annotations/instances_default.json names is there",
        ),
    ],
)
def test_unusable_files_get_one_sentence(change, message, tmp_path):
    cvat(tmp_path)
    path = tmp_path / "annotations" / "instances_default.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        recognise(tmp_path)


def test_which_file_is_for_training_must_be_clear(tmp_path):
    cvat(tmp_path)
    write_json(tmp_path / "annotations" / "more.json", coco_content(STEMS))
    with pytest.raises(DataError, match=r"several COCO files of no part .*; keep one, or call"):
        recognise(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    cvat(tmp_path)
    (tmp_path / "annotations" / "instances_default.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"instances_default.json: is not JSON"):
        recognise(tmp_path)


def test_a_name_that_two_pictures_have(tmp_path):
    cvat(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for stem in STEMS:
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{stem}.jpg")
    path = tmp_path / "annotations" / "instances_default.json"
    path.write_text(json.dumps(coco_content(STEMS, "/elsewhere/")))
    with pytest.raises(DataError, match=r"which may be .* or .*; write their folders into"):
        recognise(tmp_path)
