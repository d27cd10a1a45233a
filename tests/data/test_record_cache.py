"""Records of large data sets: read and checked once, the same words each time."""

import json
import logging
import multiprocessing
import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances as detectron2_register

from knet.data import check_dataset, record_cache, register_custom
from knet.data.chosen_records import load_records
from knet.data.defects import DataError
from knet.data.on_error import Scan
from knet.data.record_cache import Source, kept_scan
from knet.data.records import Records

from .broken_sets import CASES, make_broken
from .good_sets import FORMATS, make_good
from .test_defects import make_cfg


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch):
    monkeypatch.setattr(record_cache, "_LARGE", 1)
    monkeypatch.setattr(record_cache, "_MANY", 1)


def configure(entry, tmp_path, on_error="raise"):
    cfg = make_cfg(entry, on_error)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    register_custom(cfg)
    return cfg


def files(tmp_path):
    return sorted((tmp_path / "out" / "records").glob("*.records"))


@pytest.mark.parametrize("form", FORMATS)
def test_records_are_those_of_the_annotations(tmp_path, form, monkeypatch):
    entry = make_good(form, tmp_path / "set")
    configure(entry, tmp_path)
    kept = DatasetCatalog.get(entry["NAME"])
    assert isinstance(kept, Records) and len(files(tmp_path)) == 1
    data_set = DatasetCatalog.data[entry["NAME"]]
    assert list(kept) == data_set.scan().records
    with monkeypatch.context() as change:
        change.setattr(data_set, "scan", None)  # they are not read again
        assert list(DatasetCatalog.get(entry["NAME"])) == list(kept)
    report = check_dataset(entry["NAME"])
    assert (report.num_images, report.num_errors) == (3, 0)


def test_whatever_changes_makes_them_anew(tmp_path):
    entry = make_good("coco_instances", tmp_path / "set")
    configure(entry, tmp_path)
    path = Path(entry["JSON_FILE"])
    before = path.stat()
    DatasetCatalog.get(entry["NAME"])
    (first,) = files(tmp_path)
    # the content alone: neither size nor time
    path.write_text(path.read_text().replace('"id": 11,', '"id": 19,'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert DatasetCatalog.get(entry["NAME"])[0]["annotations"][0]["id"] == 19
    (second,) = files(tmp_path)  # the older one went
    assert second != first
    path.touch()
    DatasetCatalog.get(entry["NAME"])
    (third,) = files(tmp_path)
    assert third != second
    moved = path.with_name("other.json")
    moved.write_bytes(path.read_bytes())
    configure({**entry, "NAME": "other", "JSON_FILE": str(moved)}, tmp_path)
    DatasetCatalog.get("other")
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize(
    "name", ["instances-unknown-category", "instances-no-file-name", "panoptic-no-segments"]
)
def test_problems_are_told_as_without(tmp_path, name, caplog, monkeypatch):
    entry = make_broken(next(case for case in CASES if case.name == name), tmp_path / "set")

    def tell():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            try:
                records = list(DatasetCatalog.get(entry["NAME"]))
            except DataError as error:
                records = str(error)
        return records, [r.getMessage() for r in caplog.records]

    for policy in ("skip", "raise"):
        configure(entry, tmp_path, policy)
        data_set = DatasetCatalog.data[entry["NAME"]]
        data_set.folder, folder = "", data_set.folder
        plain = tell()
        data_set.folder = folder
        assert tell() == plain  # when it is made
        assert tell() == plain  # and when it is there
        assert len(files(tmp_path)) == 1


def test_small_data_sets_are_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(record_cache, "_LARGE", 10**6)
    entry = make_good("coco_instances", tmp_path / "set")
    configure(entry, tmp_path)
    assert isinstance(DatasetCatalog.get(entry["NAME"]), list)
    assert not (tmp_path / "out").exists()


def test_data_sets_of_others_are_kept_with_their_metadata(tmp_path):
    entry = make_good("coco_instances", tmp_path / "set")
    detectron2_register("theirs", {}, entry["JSON_FILE"], entry["IMAGE_ROOT"])
    cfg = make_cfg({**entry, "NAME": "theirs"})
    cfg.DATASETS.CUSTOM, cfg.OUTPUT_DIR = [], str(tmp_path / "out")
    plain = DatasetCatalog.get("theirs")
    classes = MetadataCatalog.get("theirs").as_dict()
    for _ in range(2):  # made, and found
        MetadataCatalog.remove("theirs")
        MetadataCatalog.get("theirs").set(
            json_file=entry["JSON_FILE"], image_root=entry["IMAGE_ROOT"], evaluator_type="coco"
        )
        kept = load_records(cfg, ["theirs"], filter_empty=False)
        assert isinstance(kept, Records) and list(kept) == plain
        assert MetadataCatalog.get("theirs").as_dict() == classes
    assert len(load_records(cfg, ["theirs"], filter_empty=True)) == 3


def test_another_reader_is_asked_again(tmp_path):
    entry = make_good("coco_instances", tmp_path / "set")
    cfg = make_cfg({**entry, "NAME": "theirs"})
    cfg.DATASETS.CUSTOM, cfg.OUTPUT_DIR = [], str(tmp_path / "out")

    def read(reader):
        DatasetCatalog.register("theirs", reader)
        MetadataCatalog.get("theirs").set(json_file=entry["JSON_FILE"])
        found = load_records(cfg, ["theirs"], filter_empty=False)
        DatasetCatalog.remove("theirs")
        MetadataCatalog.remove("theirs")
        return found

    def number(value):
        return lambda: [{"image_id": value}]

    for value in (1, 2):
        found = read(number(value))
        assert list(found) == [{"image_id": value}] and isinstance(found, Records)
    assert len(files(tmp_path)) == 1
    # whose code cannot be known
    found = read(eval("lambda: [{'image_id': 3}]"))
    assert found == [{"image_id": 3}]


def test_the_records_of_before_are_removed(tmp_path):
    entry = make_good("semantic", tmp_path / "set")
    for k in range(2):
        configure(entry, tmp_path)
        assert len(DatasetCatalog.get(entry["NAME"])) == 3 + k
        assert len(files(tmp_path)) == 1
        DatasetCatalog.remove(entry["NAME"])
        for root in (entry["IMAGE_ROOT"], entry["SEM_SEG_ROOT"]):
            found = min(Path(root).iterdir())
            (found.parent / f"0{found.name}").write_bytes(found.read_bytes())


def test_what_cannot_be_kept_is_read_and_said(tmp_path, caplog):
    found = Scan(records=[{"x": object()}])
    file = tmp_path / "a.json"
    file.write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert kept_scan("odd", Source([str(file)]), tmp_path, lambda: found) is found
    assert "'odd': a object is not kept on disk, so every process reads it" in caplog.text
    assert not list(tmp_path.glob("*.records"))


def test_detectron2s_own_loader_takes_them(tmp_path):
    entry = make_good("coco_instances", tmp_path / "set")
    cfg = configure(entry, tmp_path)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 2
    loader = build_detection_train_loader(cfg, mapper=lambda record: record)
    assert len(next(iter(loader))) == 2


def _build(folder, file, counts, ready):
    def scan():
        with open(counts, "a") as stream:
            stream.write("x")
        ready.wait(20)  # the other one has looked for the file by now
        return Scan(records=[{"x": k} for k in range(100)])

    assert len(kept_scan("set", Source([file]), folder, scan).records) == 100


def test_of_two_processes_one_reads(tmp_path):
    file, counts = tmp_path / "a.json", tmp_path / "counts"
    file.write_text(json.dumps({}))
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    arguments = (str(tmp_path / "records"), str(file), str(counts), ready)
    both = [context.Process(target=_build, args=arguments) for _ in range(2)]
    for one in both:
        one.start()
    both[0].join(0.5)
    ready.set()
    for one in both:
        one.join(60)
    assert [one.exitcode for one in both] == [0, 0]
    assert counts.read_text() == "x"
    assert len(list((tmp_path / "records").glob("*.records"))) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("{}")
    with pytest.raises(
        OSError, match=r"a\.json.*set DATASETS\.RECORDS_FOLDER to a folder that can"
    ):
        kept_scan("set", Source([str(file)]), file, Scan)
