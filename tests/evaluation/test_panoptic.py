"""Panoptic quality image by image: the numbers and files of Detectron2's evaluator."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from PIL import Image

from knet.data.panoptic_png import read_panoptic_png
from knet.evaluation.panoptic import _THREADS, PanopticEvaluator

from .photos import NAME, compare, evaluate, predictions


def test_panoptic_quality_is_that_of_the_files(records, tmp_path):
    file = "predictions.json"
    ours = PanopticEvaluator(NAME, str(tmp_path / "ours"), write_png=True)
    theirs = COCOPanopticEvaluator(NAME, str(tmp_path / "theirs"))
    results = compare(ours, theirs, records, tmp_path / "ours" / file, tmp_path / "theirs" / file)
    assert 20 < results["panoptic_seg"]["PQ"] < 95
    assert evaluate(PanopticEvaluator(NAME), records) == results
    assert evaluate(PanopticEvaluator(NAME), [*records, records[0]]) == results  # fills a batch
    for record in records:  # a submission: the PNGs that the JSON names
        png = tmp_path / "ours" / "predictions" / f"{Path(record['file_name']).stem}.png"
        expected = predictions(record)["panoptic_seg"][0]
        assert (read_panoptic_png(str(png)) == expected.numpy()).all()


def test_little_is_kept_of_an_image(records):
    evaluator = PanopticEvaluator(NAME)
    evaluator.reset()
    for record in records:
        evaluator.process([record], [predictions(record)])
    evaluator._collect(0)
    assert evaluator._judged._file.tell() < 1000 * len(records)
    assert len(pickle.dumps(evaluator._truth._places)) < 100 * len(records)


def test_errors_name_the_image(records):
    evaluator = PanopticEvaluator(NAME)
    evaluator.reset()
    evaluator.process([records[0]], [predictions(records[0])])
    with pytest.raises(ValueError, match=rf"panoptic_val\.json' .*: {records[1]['image_id']}"):
        evaluator.evaluate()
    evaluator.reset()
    out = predictions(records[1])
    out["panoptic_seg"][1].append({"id": 77, "category_id": 0, "isthing": True})
    with pytest.raises(ValueError, match=rf"Image {records[1]['image_id']} .* 77 are in the JSON"):
        evaluator.process([records[1]], [out])
        evaluator.evaluate()
    evaluator.reset()  # a failed evaluation leaves nothing behind
    for record in records:
        evaluator.process([record], [predictions(record)])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] > 0


def test_data_without_annotations_get_their_pngs_written(records, tmp_path):
    metadata = MetadataCatalog.get(NAME)
    content = json.loads(Path(metadata.panoptic_json).read_text())
    del content["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(content))
    MetadataCatalog.remove(NAME)
    MetadataCatalog.get(NAME).set(
        **{**metadata.as_dict(), "panoptic_json": str(tmp_path / "test.json")}
    )
    assert evaluate(PanopticEvaluator(NAME, str(tmp_path / "out")), records) == {}
    saved = json.loads((tmp_path / "out" / "predictions.json").read_text())
    for record in saved["annotations"]:
        assert Image.open(tmp_path / "out" / "predictions" / record["file_name"]).mode == "RGB"


def test_threads_keep_the_order_and_the_model_waits_when_they_are_behind(records, tmp_path):
    evaluator = PanopticEvaluator(NAME, str(tmp_path))
    evaluator.reset()
    gate, judge, running = threading.Event(), evaluator._judge, []

    def wait(image_id, *rest):
        running.append(image_id)
        gate.wait(10)
        return judge(image_id, *rest)

    evaluator._judge = wait
    done = [{**records[0], "image_id": k} for k in range(2 * _THREADS + 1)]
    for record in done[:-1]:
        evaluator.process([record], [predictions(records[0])])
    assert len(running) <= _THREADS and len(evaluator._waiting) == 2 * _THREADS
    threading.Timer(0.05, gate.set).start()
    evaluator.process(done[-1:], [predictions(records[0])])  # has to wait for the first
    assert gate.is_set() and len(evaluator._waiting) <= 2 * _THREADS
    evaluator._collect(0)
    evaluator._spool.write(str(tmp_path / "all.json"))
    found = json.loads((tmp_path / "all.json").read_text())
    assert [record["image_id"] for record in found] == list(range(len(done)))
