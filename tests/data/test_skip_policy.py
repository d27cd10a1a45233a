"""Training over every broken data set: stopped with the name of the file, or gone on, counted."""

import itertools
import logging

import pytest

from knet.data import KNetDatasetMapper, register_custom
from knet.data.defects import DataError
from knet.data.loader import build_train_loader

from .broken_sets import NUM_IMAGES, make_broken
from .test_defects import ERRORS, make_cfg, named

RECORDS = [case for case in ERRORS if case.left_out is not None]
WHOLE_FILES = [case for case in ERRORS if case.left_out is None]


def _batches(entry, policy, count=3 * NUM_IMAGES):
    cfg = make_cfg(entry, policy)
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
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


@named(WHOLE_FILES)
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_broken_file_stops_under_both_policies(tmp_path, case, policy):
    entry = make_broken(case, tmp_path / "set")
    with pytest.raises(DataError) as caught:
        _batches(entry, policy)
    assert str(tmp_path / "set" / case.file) in str(caught.value)
