"""The config of a training that follows from a folder, what the user wants, and measurements."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from knet.config_file import inference_kernels
from knet.data.check.data_set import add_config_defects, mask_cell
from knet.data.check.report import DatasetReport, format_report
from knet.data.check.run import check_data
from knet.data.custom import register_custom
from knet.data.formats import recognise
from knet.data.progress import show_progress
from knet.errors import UserError
from knet.recipe.choices import Choice, Data, Machine, choose, format_choices
from knet.recipe.start import Settings, start_from
from knet.recipe.steps import choose_steps, measure
from knet.training.batch_size import largest_batch
from knet.training.console import only_errors, quiet_terminal

logger = logging.getLogger(__name__)

# config keys that flags say
_FLAGS = {
    "OUTPUT_DIR": "--output",
    "SEED": "--seed",
    "DATASETS.CUSTOM": "--data",
    "DATASETS.TRAIN": "--data",
    "DATASETS.TEST": "--val",
}


@dataclass(frozen=True)
class Wishes:
    """What the user wants of a training; see `knet.recipe.train_folder`."""

    data: str | os.PathLike[str]
    opts: tuple[Any, ...] = ()
    val: str | os.PathLike[str] | None = None
    model: str | None = None
    task: str | None = None
    epochs: float | None = None
    minutes: float | None = None
    batch: int | None = None
    seed: int | None = None
    num_gpus: int = 1

    @property
    def settled(self) -> list[str]:
        """Those that a training cannot change on its way."""
        names = ("val", "model", "task", "epochs", "minutes", "batch", "seed")
        return [name for name in names if getattr(self, name) is not None]


def derive(wishes: Wishes, folder: Path) -> CfgNode:
    """The complete config; what it follows from is logged, to `log.txt` in the folder, too.

    Args:
        wishes: of the user.
        folder: of the training; converted annotations are written there.

    Raises:
        UserError, DataError, ValueError: as `train_folder`.
    """
    start_time = time.monotonic()
    seed = 1 if wishes.seed is None else wishes.seed
    for key in wishes.opts[::2]:
        if key in _FLAGS:
            raise UserError(f"{key} is what {_FLAGS[key]} says: use that")
    found = recognise(wishes.data, val=wishes.val, task=wishes.task)
    found.require_outside(folder)
    start = start_from(found.task, wishes.model)
    settings = Settings(start, wishes.opts)
    # what a user asks for may need crops of pixels; their size is chosen below
    settings.fix("INPUT.CROP.ENABLED", True)
    settings.fix("INPUT.CROP.TYPE", "absolute")
    settings.fix("INPUT.CROP.SIZE", (256, 256))
    settings.fix("OUTPUT_DIR", str(folder))
    settings.fix("SEED", seed)
    cfg = settings.config()
    if "://" in cfg.MODEL.WEIGHTS:  # fetched, or found missing, before the data are converted
        PathManager.get_local_path(cfg.MODEL.WEIGHTS)
    prepared = found.prepare(folder / "data", seed=seed)
    # word for word as `training.console.set_up` calls it, which then gets this one
    quiet_terminal([setup_logger(str(folder), distributed_rank=0, name="knet")])
    logger.info("the data:\n%s", "\n".join(f"  {note}" for note in prepared.notes))
    for key, value in (
        ("DATASETS.CUSTOM", [prepared.train, prepared.val]),
        ("DATASETS.TRAIN", (prepared.train["NAME"],)),
        ("DATASETS.TEST", (prepared.val["NAME"],)),
        ("INPUT.REDUCED_FOLDER", str((folder / "data" / "reduced").resolve())),
    ):
        settings.fix(key, value)
    cfg = settings.config()
    settings.fix("MODEL.DEVICE", cfg.MODEL.DEVICE)  # said once if there is no GPU
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    train, test = check_data(cfg, model=False, workers=cores or 1, progress=show_progress)
    _require_sound(train, test, cfg)
    register_custom(cfg)

    machine = Machine(torch.device(cfg.MODEL.DEVICE).type, wishes.num_gpus, cores or 1)
    numbers = Data.from_reports(prepared.task, train, test)
    settings.choose(choose(numbers, machine, cfg, whole=start.whole, batch=wishes.batch))
    _say_reports([train, test], settings.config())
    logger.info("measuring the memory and the time of a step")
    with only_errors():
        _choose_by_trying(settings, numbers, machine, wishes, start_time)
    cfg = settings.config()
    first = [
        Choice("config", "/".join(start.config.parts[-2:]), start.reason),
        Choice("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, "with which it starts"),
    ]
    if prepared.task != "semantic":
        cell = f"{mask_cell(cfg):g} pixels"
        first.append(Choice("cells of the masks", cell, "of the model that it starts from"))
    logger.info("chosen, and why:\n%s", format_choices([*first, *settings.chosen]))
    return cfg


def _choose_by_trying(
    settings: Settings, data: Data, machine: Machine, wishes: Wishes, start_time: float
) -> None:
    """The passes of a step, by the memory, and the steps, by the time."""
    if settings.leaves("SOLVER.ACCUMULATION_STEPS"):
        fitting = largest_batch(settings.config(), processes=wishes.num_gpus)
        settings.choose([Choice("SOLVER.ACCUMULATION_STEPS", fitting.passes, fitting.reason)])
    cfg = settings.config()
    by_time = wishes.minutes is not None or (wishes.epochs is None and not machine.on_gpu)
    steps = None if settings.leaves("SOLVER.MAX_ITER") else cfg.SOLVER.MAX_ITER
    cost = measure(cfg, wishes.num_gpus) if by_time and steps is None else None
    settings.choose(
        choose_steps(
            data,
            machine,
            batch=cfg.SOLVER.IMS_PER_BATCH,
            epochs=wishes.epochs,
            minutes=wishes.minutes,
            cost=cost,
            steps=steps,
            elapsed=time.monotonic() - start_time,
        )
    )


def _require_sound(train: DatasetReport, test: DatasetReport, cfg: CfgNode) -> None:
    """UserError if the data have errors that cannot or shall not be skipped; shows them before."""
    skip = cfg.DATASETS.ON_ERROR == "skip"
    broken = [r for r in (train, test) if r.num_errors and not (skip and r is train and r.usable)]
    if not broken:
        return
    for report in broken:
        logger.info("%s", format_report(report))
    errors = sum(report.num_errors for report in broken)
    text = f"the data have {errors} error{'s' * (errors > 1)}, listed above: mend them"
    if broken == [train] and train.usable:
        text += (
            ", or leave these records out of the training by DATASETS.ON_ERROR skip at the end of "
            "the line"
        )
    elif test in broken:
        text += "; a score over fewer pictures than there are would mislead"
    raise UserError(text)


def _say_reports(reports: Sequence[DatasetReport], cfg: CfgNode) -> None:
    add_config_defects(reports, cfg)
    _, kernels = inference_kernels(cfg)
    for report in reports:
        logger.info("%s", format_report(report, num_kernels=kernels))
