"""What cannot be done ends with one clear message, and nothing half written."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from knet_command import main

from . import results


def fails(capsys, arguments):
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("knet report: error: ")
    return lines[-1]


@pytest.fixture
def call(tiny_opts, tiny_shapes, tmp_path):
    def arguments(*flags, **options):
        flags = ["--output", tmp_path / "report.html", *flags]
        return results.arguments(tiny_opts, *flags, **options)

    return arguments


def test_predictions_that_are_not_there(call, tmp_path, capsys):
    message = fails(capsys, call("--predictions", tmp_path / "nowhere"))
    assert "nowhere: there is no such folder" in message
    (tmp_path / "empty").mkdir()
    message = fails(capsys, call("--predictions", tmp_path / "empty"))
    assert "no images.json in it; knet predict --results writes such folders" in message
    assert "name the weights with --weights FILE" in fails(capsys, call())
    assert not (tmp_path / "report.html").exists()


def test_predictions_that_do_not_fit(call, results_folder, capsys, tmp_path):
    file = results_folder / "images.json"
    good = json.loads(file.read_text())

    def message(content):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return fails(capsys, call("--predictions", results_folder))

    instances = results_folder / "instances.json"
    every = instances.read_text()
    instances.write_text(json.dumps([i for i in json.loads(every) if i["image_id"] != 1]))
    text = message({**good, "images": good["images"][1:]})
    instances.write_text(every)
    assert "lacks 1 of the data set's 4 images: 000001.png" in text
    assert "has other classes than the data set: disc" in message(
        {**good, "categories": [c for c in good["categories"] if c["name"] != "disc"]}
    )
    assert "cannot be read as JSON" in message("{")
    assert "no list of images" in message({**good, "images": 3})
    file.write_text(json.dumps(good))
    found = json.loads((results_folder / "instances.json").read_text())
    found[0]["segmentation"]["size"] = [5, 5]
    (results_folder / "instances.json").write_text(json.dumps(found))
    assert "instances.json" in fails(capsys, call("--predictions", results_folder))
    del found[0]["segmentation"]
    (results_folder / "instances.json").write_text(json.dumps(found))
    assert "are not in the form" in fails(capsys, call("--predictions", results_folder))
    (results_folder / "semantic" / "000001.png").write_bytes(b"no picture")
    (results_folder / "instances.json").unlink()
    assert "000001.png cannot be read" in fails(capsys, call("--predictions", results_folder))
    assert not (tmp_path / "report.html").exists()


def test_files_of_predictions_are_blamed_for_their_own_errors(call, results_folder, capsys):
    def message(name, change):
        path = results_folder / name
        before = path.read_bytes()
        if path.suffix == ".png":
            with Image.open(path) as opened:
                opened.resize((50, 40), Image.Resampling.NEAREST).save(path)
        else:
            content = json.loads(before)
            change(content)
            path.write_text(json.dumps(content))
        found = fails(capsys, call("--predictions", results_folder))
        path.write_bytes(before)
        return found

    assert "the image '000001' has no height" in message(
        "images.json", lambda content: content["images"][0].pop("height")
    )
    assert "images.json does not know: 99" in message(
        "instances.json", lambda content: [found.update(image_id=99) for found in content]
    )
    for name, words in (
        ("panoptic/000001.png", "is 50x40 (width x height), but its picture is 96x96"),
        ("semantic/000001.png", "has 40 x 50 pixels, its image in images.json 96 x 96"),
    ):
        assert f"{name} {words}" in message(name, None)


def test_outputs_that_cannot_be_written(results_folder, tiny_opts, tmp_path, capsys):
    flags = ["--predictions", results_folder, "--output"]
    message = fails(capsys, results.arguments(tiny_opts, *flags, tmp_path))
    assert "is a folder: name a file" in message
    (tmp_path / "file").write_text("")
    message = fails(capsys, results.arguments(tiny_opts, *flags, tmp_path / "file" / "x.html"))
    assert "--output" in message and "cannot be written" in message


def test_data_sets_without_images_or_truth(call, capsys):
    metadata = MetadataCatalog.get("tiny_val").as_dict()
    records = [{"file_name": "x.png", "image_id": 1}]
    DatasetCatalog.register("bare", lambda: list(records))
    MetadataCatalog.get("bare").set(**{**metadata, "name": "bare"})
    try:
        arguments = [*call("--dataset", "bare"), "MODEL.WEIGHTS", "none.pth"]
        assert "none.pth" in fails(capsys, arguments)
        records.clear()
        assert "'bare' has no image" in fails(capsys, arguments)
    finally:
        DatasetCatalog.remove("bare")
        MetadataCatalog.remove("bare")
    assert "'nowhere' is not registered" in fails(capsys, call("--dataset", "nowhere"))


def test_tasks_without_results(call, tiny_shapes, tmp_path, capsys):
    folder = results.write_results(tmp_path / "results", kinds=["sem_seg"])
    message = fails(capsys, call("--predictions", folder, "--task", "panoptic"))
    assert "--task panoptic: there are results for semantic only" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--images", "0"], "at least one"), (["--score-threshold", "2"], "scores are 0 to 1")],
)
def test_wrong_calls(flags, message, capsys):
    assert message in fails(capsys, ["report", "--config-file", "x.yaml", *flags])


def test_wrong_configs(capsys, tmp_path):
    output = ["--output", str(tmp_path / "x.html")]
    assert "gone.yaml" in fails(capsys, ["report", "--config-file", "gone.yaml", *output])
    arguments = ["report", "--config-file", "configs/shapes/panoptic.yaml", *output, "NO.KEY", "1"]
    assert "NO.KEY" in fails(capsys, arguments)
