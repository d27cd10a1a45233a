"""Batches that can be continued and shared."""

import copy
import itertools
import logging
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image

from knet.data.defects import DataError, MissingFileError
from knet.data.loader import (
    ResumableBatchSampler,
    SeededDataset,
    build_train_loader,
)
from knet.data.mapper import KNetDatasetMapper
from knet.errors import UserError, one_line
from knet.training.trainer import Trainer


def take(sampler, count):
    return list(itertools.islice(sampler, count))


def test_each_pass_over_the_data_is_a_permutation():
    batches = take(ResumableBatchSampler([0] * 10, batch_size=5, seed=1), 6)
    positions = [position for batch in batches for position, _ in batch]
    assert positions == list(range(30))
    passes = np.array([index for batch in batches for _, index in batch]).reshape(3, 10)
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert not (passes[0] == passes[1]).all()


def test_starting_later_skips_exactly_the_batches_before():
    groups = [i % 3 == 0 for i in range(11)]
    whole = take(ResumableBatchSampler(groups, batch_size=4, seed=5), 12)
    late = take(ResumableBatchSampler(groups, batch_size=4, seed=5, start=7), 5)
    assert late == whole[7:]
    other = take(ResumableBatchSampler(groups, batch_size=4, seed=6), 12)
    assert other != whole


def test_processes_share_the_batches_of_one():
    whole = take(ResumableBatchSampler([0] * 9, batch_size=4, seed=2), 8)
    halves = [
        take(ResumableBatchSampler([0] * 9, batch_size=4, seed=2, rank=r, world_size=2), 8)
        for r in range(2)
    ]
    assert [a + b for a, b in zip(*halves)] == whole
    with pytest.raises(ValueError, match="5 images, which 2 processes cannot share"):
        ResumableBatchSampler([0], batch_size=5, seed=0, world_size=2)


def test_batches_hold_one_aspect_ratio():
    groups = [0, 1, 0, 1, 1, 0, 0]
    for batch in take(ResumableBatchSampler(groups, batch_size=3, seed=0), 20):
        assert len({groups[index] for _, index in batch}) == 1


def test_augmentation_depends_on_the_position_alone():
    def mapper(record):
        record["drawn"] = (random.random(), np.random.rand(), torch.rand(1).item())
        return record

    records = [{"x": 1}, {"x": 2}]
    dataset = SeededDataset(records, mapper, seed=4)
    first = dataset[(7, 0)]
    torch.manual_seed(123)
    np.random.seed(5)
    assert dataset[(7, 0)] == first
    assert dataset[(8, 0)]["drawn"] != first["drawn"]
    assert SeededDataset(records, mapper, seed=5)[(7, 0)]["drawn"] != first["drawn"]
    assert records == [{"x": 1}, {"x": 2}]  # the mapper got a copy


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_same_images_with_any_number_of_workers(tiny_cfg, workers):
    from knet.data.mapper import KNetDatasetMapper

    tiny_cfg.DATALOADER.NUM_WORKERS = workers
    mapper = KNetDatasetMapper(tiny_cfg, is_train=True)
    loader = build_train_loader(tiny_cfg, mapper, seed=3, start_step=2)
    batches = list(itertools.islice(loader, 2))
    assert [len(b) for b in batches] == [4, 4]
    checksum = sum(int(x["image"].sum()) for batch in batches for x in batch)
    tiny_cfg.DATALOADER.NUM_WORKERS = 1
    again = build_train_loader(tiny_cfg, mapper, seed=3, start_step=2)
    assert checksum == sum(
        int(x["image"].sum()) for batch in itertools.islice(again, 2) for x in batch
    )


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("DATASETS.TRAIN", (), "DATASETS.TRAIN is empty"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "RepeatFactorTrainingSampler"),
        ("SOLVER.ACCUMULATION_STEPS", 3, r"\(3\) must divide SOLVER.IMS_PER_BATCH \(4\)"),
    ],
)
def test_unfit_configs_are_refused(tiny_cfg, key, value, message):
    tiny_cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build_train_loader(tiny_cfg, lambda r: r, seed=0, start_step=0)


def _mapper_of_broken(broken):
    def mapper(record):
        if record["x"] in broken:
            raise DataError(f"{record['x']}.jpg: it is broken")
        return {**record, "drawn": random.random()}

    return mapper


def test_raise_stops_at_a_broken_record():
    dataset = SeededDataset([{"x": 0}, {"x": 1}], _mapper_of_broken({1}), seed=0)
    assert dataset[(0, 0)]["x"] == 0
    with pytest.raises(DataError, match=r"1\.jpg: it is broken"):
        dataset[(1, 1)]


def test_skip_takes_another_record_of_the_group_always_the_same():
    records, groups = [{"x": x} for x in range(8)], [0, 0, 0, 0, 1, 1, 1, 1]
    dataset = SeededDataset(
        records, _mapper_of_broken({1, 2}), seed=0, groups=groups, on_error="skip"
    )
    assert "skipped_records" not in dataset[(3, 4)]
    chosen = set()
    for position in range(20):
        sample = dataset[(position, 1)]
        assert sample["x"] in (0, 3)
        assert sample["skipped_records"][0] == "1.jpg: it is broken"
        assert dataset[(position, 1)] == sample
        chosen.add(sample["x"])
    assert chosen == {0, 3}


def test_other_groups_stand_in_for_a_group_that_is_broken_as_a_whole():
    records = [{"x": x} for x in range(4)]
    broken = _mapper_of_broken({0, 1})
    dataset = SeededDataset(records, broken, seed=0, groups=[0, 0, 1, 1], on_error="skip")
    sample = dataset[(5, 0)]
    assert sample["x"] in (2, 3)
    assert sample["skipped_records"] == ["0.jpg: it is broken", "1.jpg: it is broken"]


def test_skipping_ends_where_no_record_is_left():
    records = [{"x": 0}, {"x": 1}]
    dataset = SeededDataset(records, _mapper_of_broken({0, 1}), seed=0, on_error="skip")
    with pytest.raises(DataError, match=r"none of the 2 records can be used.*0\.jpg"):
        dataset[(0, 1)]


def test_the_loader_says_where_it_starts(tiny_cfg):
    step, per_step = 5, tiny_cfg.SOLVER.IMS_PER_BATCH
    report = build_train_loader(tiny_cfg, lambda record: record, seed=0, start_step=step)
    assert report._seen == step * per_step % report.epoch_size > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_past_broken_pictures(tiny_cfg, workers, caplog):
    mapper = KNetDatasetMapper(tiny_cfg, is_train=True)
    records = DatasetCatalog.get(tiny_cfg.DATASETS.TRAIN[0])
    lost = {r["file_name"] for r in records[::3]}

    def partly_broken(record):
        if record["file_name"] in lost:
            record["file_name"] += ".gone"
        return mapper(record)

    tiny_cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(MissingFileError, match=r"^image \d+: no picture at .*\.gone; ") as caught:
        list(itertools.islice(build_train_loader(tiny_cfg, partly_broken, seed=3, start_step=0), 9))
    # with workers as without: one line, and what is wrong
    assert one_line(caught.value) == str(caught.value.defect)
    assert "DataLoader" not in str(caught.value)
    tiny_cfg.DATASETS.ON_ERROR = "skip"
    loader = build_train_loader(tiny_cfg, partly_broken, seed=3, start_step=0)
    with caplog.at_level(logging.WARNING):
        batches = list(itertools.islice(loader, 9))
    assert all(len(batch) == 4 for batch in batches)
    assert loader.total > 0 and ".gone" in caplog.text


def test_errors_of_workers_are_clear_in_an_evaluation_too(tiny_cfg, monkeypatch):
    from knet.training.trainer import Trainer

    records = copy.deepcopy(DatasetCatalog.get(tiny_cfg.DATASETS.TEST[0]))
    records[2]["file_name"] += ".gone"
    DatasetCatalog.register("gone", lambda: records)
    tiny_cfg.DATALOADER.NUM_WORKERS = 2
    loader = Trainer.build_test_loader(tiny_cfg, "gone")
    assert len(loader) == len(records)
    with pytest.raises(MissingFileError, match=r"^image \d+: no picture at .*\.gone; "):
        list(loader)

    def full(*_):
        Image.open("/no/such/folder/file")

    # of a library: not an error that it can be taken for ours
    monkeypatch.setattr(KNetDatasetMapper, "__call__", full)
    with pytest.raises(UserError, match=r"^\[Errno 2\].*\(FileNotFoundError; KNET_TRACE") as caught:
        list(Trainer.build_test_loader(tiny_cfg, "gone"))
    assert "in full" in str(caught.value.__cause__)


def test_workers_make_the_targets(tiny_cfg):
    model = build_model(tiny_cfg).train()
    raw, ready = (
        next(iter(Trainer.build_train_loader(tiny_cfg, seed=4, prepare=prepare)))
        for prepare in (None, model.task.prepare)
    )
    assert all("instances" in x and "targets" not in x for x in raw)
    assert all(set(y) == {*x, "targets"} - {"instances", "sem_seg"} for x, y in zip(raw, ready))
    losses = model(raw)
    for name, loss in model(ready).items():
        assert torch.equal(loss, losses[name]), name
