"""`knet train --data FOLDER`: from a folder to a trained model."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

from knet.checkpoint.newest import holds_training
from knet.config import get_cfg_from_file
from knet.data.check.data_set import add_config_defects
from knet.data.check.report import DatasetReport, format_report
from knet.data.check.run import check_data, show_progress
from knet.data.custom import register_custom
from knet.data.formats import recognise
from knet.errors import UserError
from knet.evaluation.scores import MAIN_SCORES
from knet.files import read_text, write_text
from knet.predictor import KNetPredictor
from knet.recipe.choose import Choice, Data, Machine, choose, format_choices
from knet.recipe.start import Settings, start_from
from knet.recipe.steps import choose_steps, measure
from knet.training.batch_size import largest_batch
from knet.training.console import only_errors, quiet_terminal
from knet.training.curves import read_curves
from knet.training.run import train

logger = logging.getLogger(__name__)

_CONFIG, _MODEL = "config.yaml", "model"


def train_folder(
    data: str | os.PathLike[str],
    opts: Sequence[Any] = (),
    *,
    val: str | os.PathLike[str] | None = None,
    model: str | None = None,
    task: str | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    output: str | os.PathLike[str] | None = None,
    seed: int = 1,
    num_gpus: int = 1,
    resume: bool = False,
) -> Path:
    """Recognise and check the data of a folder, choose settings, train; say all of it.

    The complete config is written to `config.yaml` in the output folder: `train_net.py
    --config-file` repeats the training with it bit by bit.

    Args:
        data: the folder, see `knet.data.formats.recognise`.
        opts: config keys and values, which win over what is chosen.
        val: another folder whose pictures are scored; None: a part of the first one.
        model: a name of the zoo or a saved folder to start from; None: EfficientNet-Lite0.
        task: "instance", "panoptic" or "semantic"; None: what the data are for.
        epochs: how often every picture is seen.
        minutes: that the command may take. With neither of them 20 on a CPU.
        batch: pictures of a step; None: as the recipe says. They pass in parts that fit into the
            memory.
        output: folder of config, checkpoints, pictures and scores; None: below `output`, named
            as the data.
        seed: of the split, the weights and the order.
        num_gpus: processes that train, on a CPU too.
        resume: go on with the training in `output`, by its config.

    Returns:
        the folder of the trained model, for `KNetPredictor.from_pretrained`.

    Raises:
        UserError, DataError, ValueError: naming what is wrong with the folder, its data or a
            setting.
    """
    folder = Path(output or Path("output") / Path(os.path.abspath(data)).name)
    config = folder / _CONFIG
    if resume and not config.is_file():
        raise UserError(f"{config}: there is no training to resume; leave out --resume")
    if not resume:
        if holds_training(folder, trust=False):
            raise UserError(
                f"{folder} holds a training: --resume goes on with it, --output names another one"
            )
        cfg = _derive(folder, data, opts, val, model, task, epochs, minutes, batch, seed, num_gpus)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(config, cfg.dump())
    train(str(config), num_gpus=num_gpus, resume=resume)
    return save_model(get_cfg_from_file(config))


def _derive(
    folder: Path,
    data: str | os.PathLike[str],
    opts: Sequence[Any],
    val: str | os.PathLike[str] | None,
    model: str | None,
    task: str | None,
    epochs: float | None,
    minutes: float | None,
    batch: int | None,
    seed: int,
    num_gpus: int,
) -> CfgNode:
    """The config of a training; arguments as of `train_folder`."""
    start_time = time.monotonic()
    found = recognise(data, val=val, task=task)
    if folder.resolve() == Path(data).resolve() or Path(data).resolve() in folder.resolve().parents:
        raise UserError(f"{folder} lies in the data: name another folder with --output")
    # word for word as `training.console.set_up` calls it, which then gets this one
    quiet_terminal([setup_logger(str(folder), distributed_rank=0, name="knet")])
    prepared = found.prepare(folder / "data", seed=seed)
    logger.info("the data:\n%s", "\n".join(f"  {note}" for note in prepared.notes))
    start = start_from(prepared.task, model)
    settings = Settings(start, opts)
    for key, value in (
        ("OUTPUT_DIR", str(folder)),
        ("SEED", seed),
        ("DATASETS.CUSTOM", [prepared.train, prepared.val]),
        ("DATASETS.TRAIN", (prepared.train["NAME"],)),
        ("DATASETS.TEST", (prepared.val["NAME"],)),
        ("INPUT.REDUCED_FOLDER", str(folder / "data" / "reduced")),
    ):
        settings.fix(key, value)
    cfg = settings.config()
    settings.fix("MODEL.DEVICE", cfg.MODEL.DEVICE)  # said once if there is no GPU
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    reports = check_data(cfg, model=False, workers=cores or 1, progress=show_progress)
    register_custom(cfg)
    machine = Machine(torch.device(cfg.MODEL.DEVICE).type, num_gpus, cores or 1)
    _require_sound(reports, cfg)
    numbers = Data.from_reports(prepared.task, *reports)
    settings.choose(choose(numbers, machine, whole=start.whole, batch=batch))
    _say_reports(reports, settings.config())

    logger.info("measuring the memory and the time of a step")
    with only_errors():
        if settings.leaves("SOLVER.ACCUMULATION_STEPS"):
            fitting = largest_batch(settings.config(), processes=num_gpus)
            settings.choose([Choice("SOLVER.ACCUMULATION_STEPS", fitting.passes, fitting.reason)])
        cfg = settings.config()
        by_time = minutes is not None or (epochs is None and machine.device == "cpu")
        steps = None if settings.leaves("SOLVER.MAX_ITER") else cfg.SOLVER.MAX_ITER
        cost = measure(cfg, num_gpus) if by_time and steps is None else None
    settings.choose(
        choose_steps(
            numbers,
            machine,
            batch=cfg.SOLVER.IMS_PER_BATCH,
            epochs=epochs,
            minutes=minutes,
            cost=cost,
            steps=steps,
            elapsed=time.monotonic() - start_time,
        )
    )
    config = Choice("config", "/".join(start.config.parts[-2:]), start.reason)
    logger.info("chosen, and why:\n%s", format_choices([config, *settings.chosen]))
    return settings.config()


def _require_sound(reports: Sequence[DatasetReport], cfg: CfgNode) -> None:
    """UserError if the data have errors that are not to be skipped; shows them before."""
    errors = sum(report.num_errors for report in reports)
    if errors and cfg.DATASETS.ON_ERROR != "skip":
        for report in reports:
            logger.info("%s", format_report(report))
        raise UserError(
            f"the data have {errors} error{'s' * (errors > 1)}, listed above: mend them, or leave "
            "these records out of the training by DATASETS.ON_ERROR skip at the end of the line"
        )


def _say_reports(reports: Sequence[DatasetReport], cfg: CfgNode) -> None:
    add_config_defects(reports, cfg)
    kernels = cfg.MODEL.KNET.TEST.NUM_KERNELS or cfg.MODEL.KNET.NUM_KERNELS
    for report in reports:
        logger.info("%s", format_report(report, num_kernels=kernels))


def save_model(cfg: CfgNode) -> Path:
    """Write the best weights of a training as a folder for `KNetPredictor.from_pretrained`.

    Args:
        cfg: of the training, which has ended.
    """
    output = Path(cfg.OUTPUT_DIR)
    best = output / "model_best.pth"
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(best if best.is_file() else output / "model_final.pth")
    folder = output / _MODEL
    KNetPredictor.from_config(cfg).save_pretrained(folder, scores=_scores(output))
    logger.info("the model: %s\n  knet predict --model %s PHOTO", folder, folder)
    return folder


def _scores(output: Path) -> dict[str, float]:
    """All scores of the best evaluation of a training, as its `metrics.json` has them."""
    curves = read_curves(read_text(output / "metrics.json").splitlines())
    main = next((curves[name] for name in MAIN_SCORES if name in curves), {})
    if not main:
        return {}
    best = max(main, key=lambda step: main[step])
    return {name: curve[best] for name, curve in curves.items() if best in curve}
