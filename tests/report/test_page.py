"""What a report says: the evaluators' numbers, of every kind of model, and nothing from outside."""

import base64
import json
import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from knet.checkpoint.write_file import write_weights
from knet.classes import categories_of
from knet.data import register_coco_panoptic
from knet.evaluation import build_evaluator, pq_compute
from knet.training.curves import curves_png
from knet_command import main

from . import results
from .page_reader import PageReader


def metrics(page):
    """Name → percent of the tiles."""
    found = re.findall(r'data-metric="([^"]+)"><strong>([\d.]+)<', page)
    return {name: float(value) for name, value in found}


def numbers(reader, column):
    values = [row[column] for row in reader.classes.values()]
    return [float(value) for value in values if value]


def test_numbers_are_those_of_the_evaluators(report_file, results_folder, tiny_cfg, tmp_path):
    page = report_file.read_text(encoding="utf-8")
    reader, shown = PageReader(page), metrics(page)
    records = DatasetCatalog.get("tiny_val")
    evaluators = build_evaluator(tiny_cfg, "tiny_val", str(tmp_path / "evaluators"))
    evaluators.reset()
    for record in records:
        evaluators.process([record], [results.output_of(record)])
    scores = evaluators.evaluate()
    for task, names in (
        ("panoptic_seg", ("PQ", "SQ", "RQ")),
        ("segm", ("AP", "AP50", "AP75")),
        ("sem_seg", ("mIoU", "fwIoU", "mACC", "pACC")),
    ):
        for name in names:
            assert shown[name] == pytest.approx(scores[task][name], abs=0.051), name
    assert shown["PQ things"] == pytest.approx(scores["panoptic_seg"]["PQ_th"], abs=0.051)
    assert 0 < shown["PQ"] < 100 and 0 < shown["AP"] < 100 and 0 < shown["mIoU"] < 100

    # the same segments, counted by the panoptic quality's own code
    metadata = MetadataCatalog.get("tiny_val")
    quality = pq_compute(
        metadata.panoptic_json,
        results_folder / "panoptic.json",
        metadata.panoptic_root,
        results_folder / "panoptic",
    )
    categories = categories_of(metadata, results.IDS)
    assert list(reader.classes) == [category.name for category in categories]
    for category in categories:
        row, expected = reader.classes[category.name], quality["per_class"][category.id]
        for key, value in expected.items():
            assert float(row[key.upper()] or 0) == pytest.approx(100 * value, abs=1e-5)
        for column, task, key in (("AP", "segm", "AP"), ("IoU", "sem_seg", "IoU")):
            value = scores[task].get(f"{key}-{category.name}")
            assert (row[column] == "") == (value is None)
            if value is not None:
                assert float(row[column]) == pytest.approx(value, abs=1e-5)
    assert np.mean(numbers(reader, "PQ")) == pytest.approx(scores["panoptic_seg"]["PQ"])


def confusions(page):
    """Of each matrix: true class → predicted class → count."""
    found = []
    for table in re.findall(r'<table class="heat".*?</table>', page, re.DOTALL):
        head, *rows = PageReader(table).tables[0]
        columns = [text.strip() for _, text in head[1:]]
        counts = iter(re.findall(r'<span class="count">([^<]*)</span>', table))
        found.append(
            {
                row[0][1].strip(): {c: int(next(counts).replace("\u202f", "")) for c in columns}
                for row in rows
            }
        )
    return found


def test_confusions_are_those_of_the_counts(report_file):
    page = report_file.read_text(encoding="utf-8")
    reader = PageReader(page)
    segments, pixels = confusions(page)
    present = [name for name, row in reader.classes.items() if row["Found"]]
    assert len(present) > 5
    assert list(segments["disc"]) == [*present, "missed"]
    assert list(segments)[: len(present)] == present
    for name in present:
        row = reader.classes[name]
        found, false, missed = (int(row[key] or 0) for key in ("Found", "False", "Missed"))
        assert segments[name][name] == found
        assert sum(segments[name].values()) == found + missed
        assert sum(row[name] for row in segments.values()) == found + false
    things = ["disc", "square", "triangle", "star"]
    wrong = [(a, b) for a, b in zip(things, things[1:] + things[:1]) if segments[a][b]]
    assert wrong  # the errors that were put in
    assert list(pixels) == list(pixels["disc"]) == present
    for name in present:
        row = reader.classes[name]
        both = pixels[name][name]
        union = sum(pixels[name].values()) + sum(r[name] for r in pixels.values()) - both
        assert 100 * both / union == pytest.approx(float(row["IoU"]), abs=1e-5)
    words = " ".join("".join(reader.words).split())
    assert all(f"{a} → {b}" in words for a, b in wrong) and words.count("Most frequent errors") == 2


def test_page_is_self_contained_and_well_formed(report_file):
    page = report_file.read_text(encoding="utf-8")
    reader = PageReader(page)
    assert not re.search(r"https?://|url\(|@import|srcset", page)
    for _, values in reader.tags:
        for key in ("src", "href"):
            if values.get(key):
                assert values[key].startswith(("data:", "#"))
    policy = reader.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'")
    ids = [values["id"] for _, values in reader.tags if "id" in values]
    assert len(ids) == len(set(ids))
    for _, values in reader.tags:
        for key in ("aria-labelledby", "for"):
            assert values.get(key) is None or values[key] in ids
    assert all(values.get("alt") for values in reader.all("img"))
    assert len(reader.all("li", **{"class": "card"})) == 4
    shapes = reader.all("g", **{"class": "shape"})
    assert {s["data-status"] for s in shapes} >= {"match", "confused", "missed"}
    assert all(0 <= float(s["data-score"]) <= 1 for s in shapes if "data-score" in s)


@pytest.mark.parametrize(
    ("kinds", "task", "measure", "absent"),
    [(["instances"], "instance", "F1", "mIoU"), (["sem_seg"], "semantic", "mIoU", "PQ")],
)
def test_models_of_one_task(tiny_shapes, tiny_opts, tmp_path, kinds, task, measure, absent):
    folder = results.write_results(tmp_path / "results", kinds=kinds)
    path = tmp_path / "report.html"
    flags = ["--predictions", folder, "--output", path, "--score-threshold", "0.4"]
    assert main(results.arguments(tiny_opts, *flags)) == 0
    page = path.read_text(encoding="utf-8")
    reader, shown = PageReader(page), metrics(page)
    assert absent not in shown and absent not in next(iter(reader.classes.values()))
    assert f"<abbr>{measure}</abbr>" in page
    if task == "instance":
        assert np.mean(numbers(reader, "AP")) == pytest.approx(shown["AP"], abs=0.051)
        row = reader.classes["square"]
        tp, fp, fn = (float(row[key]) for key in ("Found", "False", "Missed"))
        assert float(row["F1"]) == pytest.approx(200 * tp / (2 * tp + fp + fn))
        (best,) = reader.all("button", id="best-score")
        shown_f1, usual_f1 = re.findall(
            r"F1 of all instances ([0-9.]+) % there, ([0-9.]+) %", page
        )[0]
        again = path.with_name("best.html")
        flags = ["--predictions", folder, "--output", again]
        flags += ["--score-threshold", best["data-score"]]
        assert main(results.arguments(tiny_opts, *flags)) == 0
        for text, f1 in ((page, usual_f1), (again.read_text(encoding="utf-8"), shown_f1)):
            rows = PageReader(text).classes.values()
            tp, fp, fn = (sum(int(r[k] or 0) for r in rows) for k in ("Found", "False", "Missed"))
            assert 200 * tp / (2 * tp + fp + fn) == pytest.approx(float(f1), abs=0.051)
        assert float(shown_f1) >= float(usual_f1)
    else:
        assert np.mean(numbers(reader, "IoU")) == pytest.approx(shown["mIoU"], abs=0.051)
        assert 'id="score"' not in page  # pixels have none


def test_a_semantic_model_is_run(semantic_cfg, tiny_opts, tmp_path):
    weights, path = tmp_path / "model.pth", tmp_path / "report.html"
    write_weights(weights, build_model(semantic_cfg).state_dict())
    trained = {"iteration": 19, "total_loss": 2.5, "lr": 0.1, "sem_seg/mIoU": 30.0}
    (tmp_path / "metrics.json").write_text(json.dumps(trained))
    opts = [*tiny_opts, "MODEL.KNET.SEMANTIC.AUX_DIM", 16, "MODEL.WEIGHTS", weights]
    arguments = results.arguments(opts, "--output", path, "--images", 3, config="semantic")
    assert main(arguments) == 0
    page = path.read_text(encoding="utf-8")
    assert "The 2 worst and 1 best of 4 images" in " ".join(page.split())
    assert "mIoU" in metrics(page) and page.count('class="card"') == 3
    # curves of the training in whose folder the weights are
    (png,) = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="Total loss', page)
    assert base64.b64decode(png) == curves_png(tmp_path / "metrics.json")


def test_names_are_escaped(tiny_shapes, tiny_opts, tmp_path):
    name, file_name = '<b>&"x', "a'<i>&.png"
    source, folder = tiny_shapes / "val", tmp_path / "data"
    content = json.loads((source / "panoptic.json").read_text())
    for category in content["categories"]:
        if category["name"] == "disc":
            category["name"] = name
    content["images"], content["annotations"] = content["images"][:1], content["annotations"][:1]
    original = content["images"][0]["file_name"]
    content["images"][0]["file_name"] = file_name
    (folder / "images").mkdir(parents=True)
    Image.open(source / "images" / original).save(folder / "images" / file_name)
    (folder / "panoptic.json").write_text(json.dumps(content))
    register_coco_panoptic(
        "odd_names",
        image_root=folder / "images",
        panoptic_root=source / "panoptic",
        panoptic_json=folder / "panoptic.json",
    )
    try:
        results.write_results(tmp_path / "results", "odd_names")
        path = tmp_path / "report.html"
        flags = ["--predictions", tmp_path / "results", "--output", path]
        assert main(results.arguments(tiny_opts, *flags, dataset="odd_names")) == 0
    finally:
        for key in [k for k in DatasetCatalog.list() if k.split("/")[0] == "odd_names"]:
            DatasetCatalog.remove(key)
            MetadataCatalog.remove(key)
    page = path.read_text(encoding="utf-8")
    reader = PageReader(page)
    assert name in reader.classes
    assert name not in page and "<i>&" not in page
    assert any(values.get("data-name") == file_name for values in reader.all("li"))
    assert any(values.get("data-name") == name for values in reader.all("g"))
