"""Training batches that can be continued at any step, by any number of processes.

Which images form batch i, and how each is augmented, depends on the seed and on i alone: not on
the number of processes or of loader workers. So a resumed training sees what the uninterrupted
one would have seen, and two processes see the halves of what one would.
"""

from __future__ import annotations

import copy
import functools
import gc
import logging
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from knet.data.chosen_records import left_out, read_training_records
from knet.data.copy_paste import CopyPaste
from knet.data.defects import DataError
from knet.data.on_error import SKIPPED, SkipReport, hand_over
from knet.data.records import WIDE, flags_of

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def seed_everything(*numbers: int) -> None:
    """Seed Python's, NumPy's and torch's generators from a few integers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed notes the whole call stack for a GPU that may come: a millisecond a sample
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class SeededDataset(Dataset):
    """Maps records; the augmentation of a sample is seeded by its position in the training.

    Args:
        records: Detectron2 dataset dicts.
        mapper: record -> model input; raises `DataError` for a record with a defect.
        seed: of the training.
        groups: a label per record; another record of the same group stands in for a broken one.
        on_error: "raise" stops at a broken record, "skip" takes another one, drawn by seed and
            position too, and names those left out under `SKIPPED`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        mapper: Callable[[Record], Record],
        *,
        seed: int,
        groups: Sequence[int] | None = None,
        on_error: str = "raise",
    ) -> None:
        self.records = records
        self.mapper = mapper
        self.seed = seed
        self.groups = groups
        self.on_error = on_error

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Record:
        """`key` is (position in the training, index of the record).

        Raises:
            DataError: of the mapper, under "raise"; under "skip" if no record can be used. In a
                loader's worker `SkipReport` raises it.
        """
        return hand_over(self._sample, *key)

    def _sample(self, position: int, wanted: int) -> Record:
        skipped: list[str] = []
        for index in self._candidates(wanted, position):
            seed_everything(self.seed, position)
            try:
                sample = self.mapper(copy.deepcopy(self.records[index]))
            except DataError as error:
                if self.on_error == "raise":
                    raise
                skipped.append(str(error))
                continue
            skipped += sample.get(SKIPPED, ())
            if skipped:
                sample[SKIPPED] = skipped
            return sample
        raise DataError(
            f"none of the {len(skipped)} records can be used; the last error: {skipped[-1]}"
        )

    def _candidates(self, index: int, position: int) -> Iterator[int]:
        """The record itself, then others: those of its group first, in a random order.

        Whenever the position is repeated, the order is the same.
        """
        yield index
        generator = np.random.default_rng((self.seed, position))
        others = generator.permutation(len(self.records))
        if self.groups is not None:
            groups = np.asarray(self.groups)
            others = others[np.argsort(groups[others] != groups[index], kind="stable")]
        yield from (int(other) for other in others if other != index)


class ResumableBatchSampler(Sampler):
    """Endless shuffled batches, each sharded over the processes.

    Args:
        groups: a label per record; a batch holds records of one label (aspect ratios).
        batch_size: of all processes together.
        seed: of the shuffle.
        rank, world_size: this process gets the rank-th part of every batch.
        start: index of the first batch.
    """

    def __init__(
        self,
        groups: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH over SOLVER.ACCUMULATION_STEPS gives {batch_size} images, "
                f"which {world_size} processes cannot share evenly"
            )
        self.groups = list(groups)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world_size
        for i, batch in enumerate(self._batches()):
            if i >= self.start:
                yield batch[self.rank * share : (self.rank + 1) * share]

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed)
        waiting: dict[int, list[tuple[int, int]]] = {}
        position = 0
        while True:
            for index in torch.randperm(len(self.groups), generator=generator).tolist():
                bucket = waiting.setdefault(self.groups[index], [])
                bucket.append((position, index))
                position += 1
                if len(bucket) == self.batch_size:
                    yield bucket
                    waiting[self.groups[index]] = []


def _identity(batch: list[Record]) -> list[Record]:
    return batch


@functools.cache  # said once
def usable_workers(asked: int) -> int:
    """How many loader processes this process should start: no more than its share of the cores.

    All processes of a group must ask at the same time.

    Args:
        asked: DATALOADER.NUM_WORKERS.
    """
    # not all cores of the machine, in a container or under a scheduler
    affinity = getattr(os, "sched_getaffinity", None)
    cores = affinity(0) if affinity else set(range(os.cpu_count() or 1))
    here = socket.gethostname()
    # some launchers bind a process to cores of its own, with others it shares them
    told = comm.all_gather((here, sorted(cores)))
    users = Counter(core for host, theirs in told if host == here for core in theirs)
    most = max(1, int(sum(1 / users[core] for core in cores) + 1e-6))
    if asked > most:
        text = "DATALOADER.NUM_WORKERS: %d in place of %d, on %d cores"
        logger.info(text, most, asked, len(cores))
    return min(asked, most)


def _leave_shared(_: int) -> None:
    """In a worker: memory that it shares with its parent is not written to by garbage collection.

    It would be copied, 80 MB a worker.
    """
    gc.freeze()


def _mapped(
    mapper: Callable[[Record], Record], prepare: Callable[[Record], Record], record: Record
) -> Record:
    return prepare(mapper(record))


def build_train_loader(
    cfg: CfgNode,
    mapper: Callable[[Record], Record],
    *,
    seed: int,
    start_step: int,
    prepare: Callable[[Record], Record] | None = None,
) -> SkipReport:
    """Batches of this process's share, from optimiser step `start_step` on, without end.

    Args:
        cfg: the config.
        mapper: record -> sample.
        seed: of the training.
        start_step: optimiser step of the first batch.
        prepare: what workers do with each sample afterwards, such as `Task.prepare`.

    Raises:
        ValueError: no data set, no record left of those named, records without objects for
            INPUT.COPY_PASTE, a sampler that cannot be continued, an uneven batch.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name at least one registered data set")
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; "
            "only 'TrainingSampler' can be continued exactly after an interruption"
        )
    steps = cfg.SOLVER.ACCUMULATION_STEPS
    if steps < 1 or cfg.SOLVER.IMS_PER_BATCH % steps:
        raise ValueError(
            f"SOLVER.ACCUMULATION_STEPS ({steps}) must divide "
            f"SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH})"
        )
    records = read_training_records(cfg)
    groups = [0] * len(records)
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = (flags_of(records) & WIDE).tolist()
    sampler = ResumableBatchSampler(
        groups,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // steps,
        seed=seed,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        start=start_step * steps,
    )
    if cfg.INPUT.COPY_PASTE:
        mapper = CopyPaste(
            mapper, records, probability=cfg.INPUT.COPY_PASTE, on_error=cfg.DATASETS.ON_ERROR
        )
    if prepare is not None:
        mapper = functools.partial(_mapped, mapper, prepare)
    loader = DataLoader(
        SeededDataset(records, mapper, seed=seed, groups=groups, on_error=cfg.DATASETS.ON_ERROR),
        batch_sampler=sampler,
        num_workers=usable_workers(cfg.DATALOADER.NUM_WORKERS),
        collate_fn=_identity,
        worker_init_fn=_leave_shared,
    )
    processes = comm.get_world_size()
    return SkipReport(
        loader,
        epoch_size=len(records) // processes,
        left_out=left_out(cfg),
        start=start_step * cfg.SOLVER.IMS_PER_BATCH // processes,
        processes=processes,
    )
