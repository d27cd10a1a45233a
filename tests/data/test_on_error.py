"""Training over every broken data set: stopped with the name of the file, or gone on, counted."""

import itertools
import json
import logging
from pathlib import Path

import pytest

from knet.data import KNetDatasetMapper, register_custom
from knet.data.defects import DataError
from knet.data.loader import build_train_loader
from knet.data.on_error import SkipReport

from .broken_sets import CASES, NUM_IMAGES, make_broken, make_good
from .test_defects import ERRORS, make_cfg, named

RECORDS = [case for case in ERRORS if case.left_out is not None]
WHOLE_FILES = [case for case in ERRORS if case.left_out is None]


def _batches(entry, policy, count=3 * NUM_IMAGES, filter_empty=False):
    cfg = make_cfg(entry, policy)
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    register_custom(cfg)
    mapper = KNetDatasetMapper(cfg, True)
    loader = build_train_loader(cfg, mapper, seed=0, start_step=0)
    return list(itertools.islice(loader, count)), loader.total


@named(RECORDS)
def test_training_stops_or_goes_on_and_counts(tmp_path, case, caplog):
    entry = make_broken(case, tmp_path / "set")
    with pytest.raises(DataError) as caught:
        _batches(entry, "raise")
    assert str(tmp_path / "set") in str(caught.value)

    with caplog.at_level(logging.WARNING):
        batches, skipped = _batches(entry, "skip")
    assert len(batches) == 3 * NUM_IMAGES and all(len(batch) == 1 for batch in batches)
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("knet.data")]
    # found on loading, and reported then; or met on the way, and counted
    said = [m for m in messages if "left out" in m]
    assert said and str(tmp_path / "set") in said[0]
    if skipped:
        assert said[0].startswith("left out of the training: ")
        assert any("times in this epoch" in m for m in messages)
    else:
        assert f"{case.left_out} images left out" in said[0]
        repeated = [m for m in said if f"{case.left_out} images were left out at loading" in m]
        assert len(repeated) >= 3 or not case.left_out  # one an epoch


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_images_without_annotation_are_said(tmp_path, caplog, policy):
    case = next(case for case in CASES if case.name == "panoptic-unannotated")
    with caplog.at_level(logging.WARNING):
        _batches(make_broken(case, tmp_path / "set"), policy)
    (line,) = [r.getMessage() for r in caplog.records if "no annotation" in r.getMessage()]
    assert "1 images have no annotation and are not used" in line and "image 5" in line


def _without_objects(tmp_path):
    entry = make_good("coco_instances", tmp_path / "set")
    content = json.loads(Path(entry["JSON_FILE"]).read_text())
    Path(entry["JSON_FILE"]).write_text(json.dumps({**content, "annotations": []}))
    return entry


def test_no_record_is_left(tmp_path):
    entry = _without_objects(tmp_path)
    assert len(_batches(entry, "raise")[0]) == 3 * NUM_IMAGES
    message = rf"{entry['NAME']}\) cannot be trained on: No valid data.*FILTER_EMPTY_ANNOTATIONS"
    with pytest.raises(ValueError, match=message):
        _batches(entry, "raise", filter_empty=True)


def test_every_record_is_left_out(tmp_path):
    entry = make_good("coco_instances", tmp_path / "set")
    content = json.loads(Path(entry["JSON_FILE"]).read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 99
    Path(entry["JSON_FILE"]).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"3 images were left out for errors.*knet check"):
        _batches(entry, "skip")


@named(WHOLE_FILES)
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_broken_file_stops_under_both_policies(tmp_path, case, policy):
    entry = make_broken(case, tmp_path / "set")
    with pytest.raises(DataError) as caught:
        _batches(entry, policy)
    assert str(tmp_path / "set" / case.file) in str(caught.value)


def test_skipped_records_are_reported_once_an_epoch(caplog):
    bad = {"x": 1, "skipped_records": ["a.jpg: broken", "b.jpg: broken"]}
    epochs = [[bad.copy()], [{"x": 2}], [{"x": 3}], [{"x": 4}], [bad.copy()], [bad.copy()]]
    report = SkipReport(epochs, epoch_size=2)
    with caplog.at_level(logging.WARNING):
        passed = list(report)
    assert [b[0]["x"] for b in passed] == [1, 2, 3, 4, 1, 1]
    assert all("skipped_records" not in b[0] for b in passed)
    first, one, three = [r.getMessage() for r in caplog.records]
    assert first.startswith("left out of the training: a.jpg")
    assert one.startswith("2 times in this epoch (2 samples in each), 2 since this process")
    assert three.startswith("4 times in this epoch (2 samples in each), 6 since this process")
    assert "a.jpg: broken; b.jpg: broken." in three
    assert report.total == 6
    report.close()
    assert len(caplog.records) == 3


def test_what_was_skipped_after_the_last_epoch_is_reported_too(caplog):
    report = SkipReport([[{"x": 1, "skipped_records": ["a.jpg: broken"]}]], epoch_size=9)
    list(report)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        report.close()
    assert "1 times in the last, unfinished epoch" in caplog.text


def test_what_was_left_out_at_loading_is_in_each_report(caplog):
    report = SkipReport([[{"x": 1}]] * 5, epoch_size=2, left_out=7, processes=2)
    with caplog.at_level(logging.WARNING):
        list(report)
        report.close()
        report.close()
    one, two, last = [r.getMessage() for r in caplog.records]
    assert one.startswith("0 times in this epoch") and two.startswith("0 times in this epoch")
    assert last.startswith("0 times in the last, unfinished epoch")
    assert all("(one process of 2). 7 images were left out at loading" in m for m in (one, two))


def test_a_resumed_training_reports_at_the_same_places(caplog):
    batches = [[{"x": k, "skipped_records": [f"{k}.jpg: broken"]}] for k in range(9)]
    report = SkipReport(batches[4:], epoch_size=3, start=4)
    caplog.set_level(logging.WARNING)
    places = []
    for batch in report:
        if any("times in this epoch" in r.getMessage() for r in caplog.records):
            places.append(batch[0]["x"])
        caplog.clear()
    assert places == [5, 8]
