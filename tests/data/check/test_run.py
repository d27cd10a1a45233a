"""`knet check` as it is called, and what it prints."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from knet.data import register_coco_instances as register_ours
from knet.data.check import record as record_module
from knet.data.check.data_set import check_dataset
from knet.data.check.report import DatasetReport, format_report, kernel_advice
from knet.data.defects import make_defect
from knet_command import main

from .. import broken_sets
from ..good_sets import label_map


def config(folder, train, test=()):
    """A config with entries for training and testing."""
    path = folder / "own.yaml"
    base = Path("configs/shapes/panoptic.yaml").resolve()
    data = {
        "CUSTOM": [*train, *test],
        "TRAIN": [entry["NAME"] for entry in train],
        "TEST": [entry["NAME"] for entry in test],
    }
    path.write_text(yaml.safe_dump({"_BASE_": str(base), "DATASETS": data}))
    return str(path)


def check(words):
    return main(["check", *words])


def case(name):
    return next(case for case in broken_sets.CASES if case.name == name)


def test_good_sets_of_each_format(tmp_path, capsys):
    entries = [broken_sets.make_good(form, tmp_path / form) for form in broken_sets.FORMATS]
    file = config(tmp_path, entries[:2], entries[2:])
    sheets, report = tmp_path / "sheets", tmp_path / "report.json"
    arguments = ["--config-file", file, "--workers", "2", "--draw", "1", "--output", str(sheets)]
    assert check([*arguments, "--json", str(report), "MODEL.KNET.NUM_KERNELS", "1"]) == 0
    text = capsys.readouterr().out
    assert "good_coco_instances: 0 errors, 1 warning\n" in text  # one kernel for two objects
    assert "good_coco_panoptic: 0 errors, 0 warnings\n" in text
    assert "good_semantic: 0 errors, 3 warnings\n" in text  # the pictures of the training
    assert "1 / 1 / 2 (min/median/max) (95 % have at most 2)" in text
    assert "the config's 1 are too few for 1 image, where 1 object cannot be found" in text
    assert len(list(sheets.glob("*.png"))) == 3
    for path in sheets.glob("*.png"):
        assert str(path) in text
        pixels = np.asarray(Image.open(path))
        assert pixels.shape[1] > 2 * pixels.shape[0] > 0
    instances, panoptic, semantic = json.loads(report.read_text())
    assert instances["class_names"] == ["stem", "leaf"]
    assert instances["class_objects"] == [2, 2] and instances["class_images"] == [2, 2]
    assert instances["objects"] == [2, 1, 1] and instances["crowds"] == 1
    assert instances["sizes"] == [[40, 60]] * 3 and instances["areas"] == [100] * 4
    assert panoptic["class_names"] == ["stem", "leaf", "soil"]
    assert panoptic["class_pixels"] == [300, 600, 3 * (2400 - 380)]
    assert semantic["objects"] == [] and semantic["class_images"] == [3, 3, 3]
    assert semantic["class_pixels"] == [3 * (2400 - 300 - 90 - 240), 900, 270]


def test_splits_names_and_exit_status(tmp_path, capsys):
    good = broken_sets.make_good("coco_instances", tmp_path / "good")
    odd = broken_sets.make_broken(case("instances-area"), tmp_path / "odd")
    bad = broken_sets.make_broken(case("instances-unknown-category"), tmp_path / "bad")
    file = config(tmp_path, [good, odd], [bad])
    run = ["--workers", "0", "--config-file", file]
    assert check([*run, "--part", "train"]) == 0  # a warning is no error
    text = capsys.readouterr().out
    assert "WARNING wrong-area: 1; count `area` again" in text and bad["NAME"] not in text
    assert check([*run, "--part", "test"]) == 1
    text = capsys.readouterr().out
    where = f"{tmp_path}/bad/annotations.json: image 5, annotation 11: category_id 99 is not"
    assert "ERROR unknown-category: 1; add the category" in text and where in text
    assert "2 of the images read are without an error" in text
    assert check(run) == 1
    assert capsys.readouterr().out.count("Data set ") == 3
    assert check([*run, "--dataset", good["NAME"]]) == 0
    assert capsys.readouterr().out.count("Data set ") == 1


def test_a_file_that_cannot_be_read_is_one_error_and_others_are_checked(tmp_path, capsys):
    bad = broken_sets.make_broken(case("instances-json-invalid"), tmp_path / "bad")
    good = broken_sets.make_good("semantic", tmp_path / "good")
    assert check(["--config-file", config(tmp_path, [bad, good]), "--workers", "0"]) == 1
    text = capsys.readouterr().out
    assert "ERROR json-invalid: 1" in text and f"{tmp_path}/bad/annotations.json" in text
    assert "good_semantic: 0 errors" in text


def test_files_beside_panoptic_annotations_are_checked_too(tmp_path, capsys):
    folder = tmp_path / "set"
    entry = broken_sets.make_good("coco_panoptic", folder)
    other = broken_sets.make_good("coco_instances", tmp_path / "other")
    shutil.copytree(folder / "labels", folder / "semantic")
    for stem in "abc":
        Image.fromarray(label_map()).save(folder / "semantic" / f"{stem}.png")
    whole = {**entry, "INSTANCES_JSON": other["JSON_FILE"], "SEM_SEG_ROOT": f"{folder}/semantic"}
    run = ["--workers", "0", "--config-file"]
    assert check([*run, config(tmp_path, [whole])]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    Image.fromarray(np.full((40, 60), 77, np.uint8)).save(folder / "semantic" / "b.png")
    content = json.loads(Path(other["JSON_FILE"]).read_text())
    content["annotations"][0]["segmentation"] = [[10, 10, 20, 10, 1e9, 20]]
    del content["annotations"][4]["category_id"]
    Path(other["JSON_FILE"]).write_text(json.dumps(content))
    DatasetCatalog.remove(entry["NAME"])
    assert check([*run, config(tmp_path, [whole])]) == 1
    text = capsys.readouterr().out
    assert f"{folder}/semantic/b.png: image 6: label 77" in text
    assert f"{other['JSON_FILE']}: image 5, annotation 11: the polygon lies far outside" in text
    assert f"{other['JSON_FILE']}: image 7, annotation 15: lacks category_id" in text
    Path(other["JSON_FILE"]).write_text("{")
    DatasetCatalog.remove(entry["NAME"])
    assert check([*run, config(tmp_path, [whole])]) == 1
    text = capsys.readouterr().out
    assert "ERROR json-invalid: 1" in text and "semantic/b.png: image 6: label 77" in text


def test_a_record_of_an_unknown_form_is_one_error_and_others_are_checked(tmp_path, monkeypatch):
    entry = broken_sets.make_good("coco_instances", tmp_path / "good")
    register_coco_instances("theirs", {}, entry["JSON_FILE"], entry["IMAGE_ROOT"])
    encode = record_module.encode_segmentation

    def odd(segmentation, size):
        if isinstance(segmentation, list):
            raise RuntimeError("nobody thought of this")
        return encode(segmentation, size)

    monkeypatch.setattr(record_module, "encode_segmentation", odd)
    report = check_dataset("theirs")
    assert [(d.kind, d.record) for d in report.defects] == [
        ("record-unchecked", "image 5"),
        ("record-unchecked", "image 7"),
    ]
    assert report.num_images == 3 and [r["image_id"] for r in report.usable] == [6]
    assert "RuntimeError: nobody thought of this" in str(report.defects[0])


def test_all_defects_of_the_categories_are_reported(tmp_path, capsys):
    entry = broken_sets.make_good("coco_instances", tmp_path / "set")
    content = json.loads(Path(entry["JSON_FILE"]).read_text())
    content["categories"] += [{"id": 7, "name": "twig"}, {"id": "x", "name": "y"}, {"id": 8}]
    Path(entry["JSON_FILE"]).write_text(json.dumps(content))
    assert check(["--config-file", config(tmp_path, [entry]), "--workers", "0"]) == 1
    text = capsys.readouterr().out
    assert f"{entry['NAME']}: 3 errors, 0 warnings" in text
    assert "category id 7 comes twice" in text and "lacks name" in text
    assert "id must be a whole number" in text
    register_coco_instances("theirs", {}, entry["JSON_FILE"], entry["IMAGE_ROOT"])
    assert check_dataset("theirs").num_errors == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "x", "--json", "nowhere/x.json"], "--json nowhere/x.json: there is no such"),
        (["--dataset", "x", "--json", "tests"], "--json tests: this is a folder"),
        ([], "name a --config-file, a --data folder or a --dataset"),
        (["--dataset", "nowhere"], "no data set 'nowhere': it is not in"),
        (["--dataset", "x", "--workers", "-1"], "--workers is -1"),
        (["--config-file", "nowhere.yaml"], "nowhere.yaml"),
        (["--dataset", "x", "--part", "dev"], "invalid choice"),
    ],
)
def test_wrong_calls(arguments, message, capsys):
    try:
        status = check(arguments)
    except SystemExit as caught:  # of argparse
        status = caught.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_wrong_configs(tmp_path, capsys):
    good = broken_sets.make_good("semantic", tmp_path / "good")
    for entry, message in (
        ({**good, "IMAGE_ROOT": "nowhere"}, "no folder"),
        ({**good, "FORMAT": "voc"}, "FORMAT is 'voc'"),
    ):
        assert check(["--config-file", config(tmp_path, [entry]), "--workers", "0"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line and line.startswith("knet check: error: ")


def test_data_sets_that_others_registered(tmp_path):
    bad = broken_sets.make_broken(case("instances-unknown-category"), tmp_path / "bad")
    good = broken_sets.make_good(broken_sets.FORMATS[0], tmp_path / "good")
    paths = {"image_root": good["IMAGE_ROOT"], "json_file": good["JSON_FILE"]}
    register_ours("theirs", **paths)
    DatasetCatalog.remove("theirs")  # and somebody else takes the name
    MetadataCatalog.remove("theirs")
    register_coco_instances("theirs", {}, bad["JSON_FILE"], bad["IMAGE_ROOT"])
    report = check_dataset("theirs")
    assert [defect.kind for defect in report.defects] == ["unknown-category"]
    assert report.class_names == ["stem", "leaf"] and report.num_images == 3
    with pytest.raises(ValueError, match="'theirs' is taken by a data set registered elsewhere"):
        register_ours("theirs", **paths)
    records = [{"file_name": str(tmp_path / "gone.png"), "image_id": 4, "annotations": []}]
    DatasetCatalog.register("function", lambda: records)
    (defect,) = check_dataset("function").defects
    assert (defect.kind, defect.record) == ("image-missing", "image 4")
    DatasetCatalog.register("fails", lambda: {}["key"])
    with pytest.raises(ValueError, match="the loader of data set 'fails' fails: KeyError: 'key'"):
        check_dataset("fails")


def test_worker_processes_find_the_same(tmp_path):
    entry = broken_sets.make_broken(case("instances-image-truncated"), tmp_path / "bad")
    register_coco_instances("theirs", {}, entry["JSON_FILE"], entry["IMAGE_ROOT"])
    seen = []
    apart = check_dataset("theirs", workers=2, progress=lambda *numbers: seen.append(numbers))
    assert apart.as_dict() == check_dataset("theirs").as_dict()
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_report_says_which_class_has_nothing_to_learn_from():
    counts = {"class_images": [3, 0], "class_objects": [4, 0], "class_pixels": [90, 0]}
    report = DatasetReport("own", class_names=["disc", "star"], objects=[2, 1, 1], **counts)
    report.num_images = 3
    disc, star = (
        next(line for line in format_report(report).splitlines() if line.split()[:1] == [name])
        for name in report.class_names
    )
    assert disc.split() == ["disc", "3", "4", "100.0", "%"]
    assert star.split()[:5] == ["star", "0", "0", "0.0", "%"]
    assert star.endswith("  (nothing to learn it from)")


def test_report_shows_the_first_ten_of_a_kind():
    defects = [make_defect("zero-area", "x.json", f"image {k}", "no pixel") for k in range(23)]
    defects += [make_defect("rle-invalid", "x.json", "image 1", "the RLE has a run of -5 pixels")]
    report = DatasetReport("own", defects=defects)
    text = format_report(report)
    assert text.index("ERROR rle-invalid: 1; ") < text.index("WARNING zero-area: 23; ")
    assert text.count("no pixel") == 10 and "… and 13 more (--all-defects shows them)" in text
    assert format_report(report, show_all=True).count("no pixel") == 23
    assert "own: 1 error, 23 warnings" in text


def test_kernel_advice():
    objects = [*range(1, 101), 375]
    assert kernel_advice(objects, None).endswith(
        "375 kernels suffice for every image, 100 for 99 % of them"
    )
    assert kernel_advice(objects, 375).endswith("; the config's 375 are enough")
    text = "300 are too few for 1 image, where 75 objects cannot be found"
    assert kernel_advice(objects, 300).endswith(text)
