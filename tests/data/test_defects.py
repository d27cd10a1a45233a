"""Every broken data set: the checker names its one defect, the loader and the mapper refuse it."""

import functools
import pickle

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError

from knet.config import get_cfg_from_file
from knet.data import KNetDatasetMapper, register_custom
from knet.data.check.data_set import check_dataset
from knet.data.defects import (
    KINDS,
    DataError,
    MissingFileError,
    PictureSizeError,
    data_error,
    make_defect,
    raise_first,
)

from .broken_sets import CASES, FORMATS, NUM_IMAGES, make_broken, make_good

ERRORS = [case for case in CASES if case.severity == "error"]
WARNINGS = [case for case in CASES if case.severity == "warning"]


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@functools.cache
def base_cfg():
    return get_cfg_from_file("configs/shapes/panoptic.yaml", [])


def make_cfg(entry, on_error="raise", test=()):
    cfg = base_cfg().clone()
    cfg.DATASETS.CUSTOM = [entry]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (entry["NAME"],), test
    cfg.DATASETS.ON_ERROR = on_error
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    return cfg


def load(entry, on_error="raise"):
    """Registers, loads and maps all records, as training does."""
    cfg = make_cfg(entry, on_error)
    register_custom(cfg)
    records = DatasetCatalog.get(entry["NAME"])
    cfg.INPUT.KNET_COLOR_AUG = []
    mapper = KNetDatasetMapper(cfg, True)
    return [mapper(record) for record in records]


@pytest.mark.parametrize("form", FORMATS)
def test_good_sets_have_no_defect(tmp_path, form):
    entry = make_good(form, tmp_path / "good")
    assert len(load(entry)) == NUM_IMAGES
    report = check_dataset(entry["NAME"])
    assert report.defects == [] and report.num_images == len(report.usable) == NUM_IMAGES


def test_there_are_enough_cases():
    assert len({case.name for case in CASES}) == len(CASES) >= 28
    assert {case.kind for case in CASES} <= set(KINDS)


@named(CASES)
def test_checker_names_the_defect_and_nothing_else(tmp_path, case):
    entry = make_broken(case, tmp_path / "set")
    if case.left_out is None:
        with pytest.raises(DataError) as caught:
            register_custom(make_cfg(entry, "skip"))
            DatasetCatalog.get(entry["NAME"])
        (defect,) = [caught.value.defect]
    else:
        register_custom(make_cfg(entry, "skip"))
        report = check_dataset(entry["NAME"])
        assert [defect.kind for defect in report.defects] == [case.kind]
        (defect,) = report.defects
        assert report.num_errors == (case.severity == "error")
    assert defect.kind == case.kind
    assert defect.file == str(tmp_path / "set" / case.file)
    assert defect.record == case.record
    assert defect.severity == case.severity
    assert "\n" not in str(defect) and defect.mend in str(defect)


@named(ERRORS)
def test_loader_refuses_errors(tmp_path, case):
    entry = make_broken(case, tmp_path / "set")
    with pytest.raises(DataError) as caught:
        load(entry)
    defect = caught.value.defect
    assert str(tmp_path / "set") in str(caught.value) and defect.mend in str(caught.value)
    # Labels that only fit the unturned picture have the wrong size for the mapper.
    assert defect.kind in (case.kind, "png-size" if case.kind == "exif-rotation" else "")
    if defect.kind == case.kind:
        assert case.file.split("/")[-1] in str(caught.value)
    if case.kind in ("image-missing", "png-missing") and case.form != "semantic":
        assert isinstance(caught.value, FileNotFoundError)


@named(WARNINGS)
def test_loader_takes_what_is_only_odd(tmp_path, case):
    entry = make_broken(case, tmp_path / "set")
    unannotated = case.kind == "image-without-annotation"
    assert len(load(entry)) == NUM_IMAGES - unannotated


STRUCTURAL = [
    "missing-key", "bad-value", "duplicate-image-id", "unknown-category", "ignore-flag",
    "duplicate-annotation-id", "duplicate-segment-id", "orphan-annotation", "segment-id-zero",
    "duplicate-annotation", "missing-segmentation", "polygon-empty", "rle-size",
]  # fmt: skip


@named([c for c in ERRORS if c.kind in STRUCTURAL and c.left_out is not None])
def test_skip_leaves_records_out_with_one_warning(tmp_path, case, caplog):
    entry = make_broken(case, tmp_path / "set")
    left = NUM_IMAGES - case.left_out
    assert len(load(entry, "skip")) == left
    (line,) = [r.message for r in caplog.records if r.name == "knet.data.on_error"]
    assert f"1 errors in its annotations, {case.left_out} images left out" in line
    assert str(tmp_path / "set" / case.file) in line and case.record in line


def test_policy(tmp_path):
    case = next(case for case in CASES if case.name == "instances-unknown-category")
    entry = make_broken(case, tmp_path / "set")
    with pytest.raises(ValueError, match=r"DATASETS\.ON_ERROR must be raise or skip, not 'warn'"):
        register_custom(make_cfg(entry, "warn"))
    register_custom(make_cfg(entry, "skip", test=(entry["NAME"],)))
    with pytest.raises(DataError, match="category_id 99"):  # evaluations lose no image
        DatasetCatalog.get(entry["NAME"])
    register_custom(make_cfg(entry, "skip"))  # the policy may change
    assert len(DatasetCatalog.get(entry["NAME"])) == 2


def test_errors_count_the_others():
    defects = [
        make_defect("wrong-area", "x.json", "image 1", "w"),
        make_defect("unknown-category", "x.json", "image 2", "y"),
        make_defect("unknown-category", "x.json", "image 3", "z"),
    ]
    raise_first(defects[:1])
    with pytest.raises(DataError, match=r"^x\.json: image 2: y; add .* \(1 more such errors") as e:
        raise_first(defects)
    assert e.value.defects == defects[1:]


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("image-missing", (MissingFileError, FileNotFoundError)),
        ("size-mismatch", (PictureSizeError, SizeMismatchError)),
        ("rle-invalid", (DataError, ValueError)),
    ],
)
def test_errors_keep_their_old_types_and_survive_pickle(kind, types):
    other = make_defect("bad-value", "a.json", "image 2", "is odder")
    error = data_error(make_defect(kind, "a.png", "image 1", "is odd"), [other])
    assert all(isinstance(error, kind) for kind in (*types, DataError))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.defects) == (type(error), str(error), error.defects)
    assert error.defects[1:] == [other]
    text = type(error)("from a worker")  # how PyTorch's DataLoader hands it on
    assert str(text) == "from a worker" and text.defects == []
    assert str(pickle.loads(pickle.dumps(text))) == "from a worker"


@pytest.mark.parametrize("form", FORMATS)
def test_annotations_are_checked_once(tmp_path, monkeypatch, form):
    """When they are read; those of other readers in the mapper."""
    entry = make_good(form, tmp_path / "good")
    calls = []
    for name in ("segment_errors", "annotation_errors"):
        monkeypatch.setattr(
            f"knet.data.mapper.{name}", lambda record, *_: calls.append(record["file_name"]) or []
        )
    load(entry)
    assert not calls
    records = DatasetCatalog.get(entry["NAME"])
    DatasetCatalog.register("theirs", lambda: records)
    MetadataCatalog.get("theirs").set(evaluator_type="none")
    cfg = make_cfg({**entry, "NAME": "theirs"})
    cfg.INPUT.KNET_COLOR_AUG = []
    mapper = KNetDatasetMapper(cfg, True)
    assert [mapper(record) for record in records]
    assert len(set(calls)) == (0 if form == "semantic" else NUM_IMAGES)


def test_reader_names_json_image_and_annotation(tmp_path):
    case = next(case for case in CASES if case.name == "instances-nan")
    entry = make_broken(case, tmp_path / "set")
    with pytest.raises(DataError) as caught:
        load(entry)
    folder = tmp_path / "set"
    start = f"{folder}/annotations.json: image 5, annotation 11: a coordinate is nan; "
    assert str(caught.value).startswith(start)
