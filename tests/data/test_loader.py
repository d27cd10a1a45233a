"""Batches that can be continued and shared."""

import itertools
import random

import numpy as np
import pytest
import torch

from knet.data.loader import ResumableBatchSampler, SeededDataset, build_train_loader


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
