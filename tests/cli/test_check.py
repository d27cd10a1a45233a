"""`knet check` on a folder, and a COCO file mended; configs are in tests/data/check/test_run.py."""

import json

import pytest
from detectron2.data import DatasetCatalog

from knet_command import main

from ..data.formats.makers import yolo
from ..data.good_sets import make_good


@pytest.fixture
def check(tmp_path):
    def call(*words):
        return main(
            ["check", "--workers", "0", "--output", str(tmp_path / "out"), *map(str, words)]
        )

    return call


def test_a_folder_is_recognised_and_checked(check, tmp_path, capsys):
    folder = tmp_path / "photos"
    yolo(folder)
    assert check("--data", folder, "--draw", "1") == 0
    said = capsys.readouterr().out
    assert "YOLO segmentation" in said
    assert "photos_train: 0 errors" in said and "photos_val: 0 errors" in said
    assert "too few" not in said  # there is no model yet
    assert len(list((tmp_path / "out").glob("photos_*.png"))) == 2
    assert check("--data", tmp_path / "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_coco_file_is_mended_divided_and_checked(check, tmp_path, capsys):
    entry = make_good("coco_instances", tmp_path / "data")
    with open(entry["JSON_FILE"], encoding="utf-8") as stream:
        content = json.load(stream)
    content["annotations"][0]["area"] = 1e6
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    words = ("--data", broken, "--image-root", entry["IMAGE_ROOT"])
    assert check(*words) == 0
    assert "WARNING wrong-area: 1" in capsys.readouterr().out
    DatasetCatalog.remove("broken")
    assert check(*words, "--fix", tmp_path / "good.json", "--split", "0.4") == 0
    said = capsys.readouterr().out
    assert f"{broken}:\n  " in said and "areas" in said
    assert f"-> {tmp_path}/good_train.json, {tmp_path}/good_val.json" in said
    assert "good_train: 0 errors" in said and "good_val: 0 errors" in said
    assert "wrong-area" not in said
    assert json.loads(broken.read_text()) == content
    images = [
        len(json.loads((tmp_path / f"good_{part}.json").read_text())["images"])
        for part in ("train", "val")
    ]
    assert sum(images) == 3 and min(images) >= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "tests", "--fix", "x.json"], "--image-root and --fix go with --data FILE"),
        (["--data", "tests", "--split", "0.2"], "--split goes with --fix; --part chooses"),
        (["--data", "README.md", "--task", "instance"], "--val and --task go with a --data folder"),
        (["--dataset", "x", "--val", "tests"], "--val and --task go with a --data folder"),
        (["--data", "tests", "--dataset", "x"], "--data is checked by itself"),
        (["--data", "README.md", "--fix", "x/y.json"], "x/y.json"),
    ],
)
def test_wrong_calls(check, words, message, capsys):
    assert check(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
