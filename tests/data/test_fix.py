"""Mechanical mends of a COCO JSON."""

from __future__ import annotations

import copy
import json

import pytest

import knet.data.fix
from knet.data import check_dataset, register_coco_instances
from knet.data.defects import DataError
from knet.data.fix import fix
from knet.errors import UserError

from .good_sets import make_good


@pytest.fixture
def good(tmp_path):
    entry = make_good("coco_instances", tmp_path / "data")
    with open(entry["JSON_FILE"], encoding="utf-8") as stream:
        return tmp_path, json.load(stream)


def run(good, **options):
    folder, content = good
    path = folder / "data" / "annotations.json"
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    fixed = fix(path, folder / "out.json", **options)
    assert path.read_bytes() == before
    return fixed, [json.loads(file.read_text()) for file in fixed.files]


def test_nothing_to_do(good):
    fixed, (content,) = run(good)
    assert content == good[1] and fixed.changes == ["nothing had to be changed"]


def test_every_mend_is_counted_and_the_checker_content(good):
    folder, content = good
    expected = copy.deepcopy(content)
    images, annotations = content["images"], content["annotations"]
    for category in content["categories"]:
        category["supercategory"] = "plants"
    content["categories"].insert(0, {"id": 0, "name": "plants", "supercategory": "none"})
    (folder / "data" / "images" / "sub").mkdir()
    (folder / "data" / "images" / "b.png").rename(folder / "data" / "images" / "sub" / "b.png")
    expected["images"][1]["file_name"] = "sub/b.png"
    del images[0]["height"]
    images.append({**images[2], "id": 99})
    annotations[0].update(area=3)
    annotations[1].update(bbox=[0, 0, 60, 40])
    del annotations[2]["iscrowd"], annotations[2]["area"]
    annotations[4].update(image_id=99)
    annotations.append(copy.deepcopy(annotations[0]))
    annotations[2]["id"] = annotations[0]["id"]
    annotations[3]["id"] = 0
    expected["annotations"][2]["id"], expected["annotations"][3]["id"] = 16, 17
    fixed, (found,) = run(good, image_root=folder / "data" / "images")
    assert set(fixed.changes) == {
        "classes left out that are but a heading of others: 1",
        "names of pictures corrected to where they are: 1",
        "sizes read from the pictures: 1",
        "images that came twice merged: 1",
        "annotations that came twice left out: 1",
        "missing `iscrowd` set to 0: 1",
        "areas counted from the mask: 2",
        "boxes drawn from the mask: 1",
        "ids of annotations given anew: 2",
    }
    for category in found["categories"]:
        assert category.pop("supercategory") == "plants"
    assert found == expected
    paths = {"image_root": folder / "data" / "images", "json_file": fixed.files[0]}
    register_coco_instances("fixed", **paths)
    assert check_dataset("fixed").defects == []


def test_split(good):
    fixed, parts = run(good, split=0.3, seed=1)
    assert [file.name for file in fixed.files] == ["out_train.json", "out_val.json"]
    assert [len(part["images"]) for part in parts] in ([1, 2], [2, 1])
    assert sum(len(part["annotations"]) for part in parts) == len(good[1]["annotations"])
    for part in parts:
        ids = {image["id"] for image in part["images"]}
        assert {a["image_id"] for a in part["annotations"]} <= ids
    assert "3 pictures were split off" in fixed.changes[-1] or "of 3" in fixed.changes[-1]


def test_both_files_are_written_or_none(good, monkeypatch):
    written = []

    def full(path, content, write=knet.data.fix.write_json):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, content)

    monkeypatch.setattr(knet.data.fix, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        run(good, split=0.3)
    assert not list(good[0].glob("out*"))


def test_what_takes_a_judgement_stays(good):
    good[1]["annotations"][0].update(segmentation=[[1, 2]], area=3)
    good[1]["annotations"][1]["image_id"] = 1234
    fixed, (content,) = run(good)
    assert content["annotations"] == good[1]["annotations"]
    assert fixed.changes == ["nothing had to be changed"]


def test_refusals(good):
    folder, content = good
    source = folder / "data" / "annotations.json"
    with pytest.raises(UserError, match="is never written over"):
        fix(source, source)
    (folder / "other_val.json").write_text("mine")
    with pytest.raises(UserError, match=r"other_val\.json is there already: remove it, or name"):
        fix(source, folder / "other.json", split=0.2)
    with pytest.raises(UserError, match="there is no such folder; make it first"):
        fix(source, folder / "nowhere" / "out.json")
    with pytest.raises(ValueError, match="split is 1; it must be between 0 and 1"):
        fix(source, folder / "out.json", split=1)
    content["images"][1]["id"] = content["images"][0]["id"]
    with pytest.raises(DataError, match=r"image 5: the id is that of a.png and of b.png"):
        run(good)
    assert not (folder / "out.json").exists()
