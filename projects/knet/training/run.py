"""Training and scoring as a config says, on one or several processes.

results = train("configs/shapes/panoptic.yaml", ["OUTPUT_DIR", "output/mine"])
results = evaluate("configs/shapes/panoptic.yaml", ["MODEL.WEIGHTS", "model_final.pth"])
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.newest import note_run, noted_run
from knet.config import get_cfg_from_file
from knet.data.custom import register_data_sets, require_registered
from knet.errors import UserError
from knet.evaluation.calibrate import Calibration, calibrate
from knet.evaluation.of_results import evaluate_shards
from knet.predictor import KNetPredictor
from knet.training.console import set_up
from knet.training.group import require_shared
from knet.training.launch import launch
from knet.training.places import job_name, was_restarted
from knet.training.stop import folder_lock
from knet.training.trainer import Trainer

__all__ = [
    "calibrate_predictor",
    "evaluate",
    "evaluate_predictor",
    "evaluate_results",
    "in_process",
    "train",
]


def train(
    config_file: str,
    opts: Sequence[Any] = (),
    *,
    resume: bool = False,
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    fork: bool = False,
    trainer: type[Trainer] = Trainer,
) -> dict[str, Any] | None:
    """Train a model and score it; everything is written to OUTPUT_DIR.

    Args:
        config_file: a YAML file.
        opts: config keys and values.
        resume: go on from the newest checkpoint in OUTPUT_DIR. So does a training that torchrun or
            SLURM has started anew, whatever this says.
        num_gpus: processes on this machine; with MODEL.DEVICE cpu they use no GPU.
        num_machines, machine_rank, dist_url, fork: see `knet.training.launch.launch`.
        trainer: a subclass with parts of its own, such as another `build_model`.

    Returns:
        The scores of the last evaluation by task; None where other processes have done the work.

    Raises:
        UserError, OSError, ValueError: naming what cannot be done, and the mend.
        SystemExit: after a signal, see `launch`.
    """
    places = (num_gpus, num_machines, machine_rank, dist_url)
    return _launch(config_file, opts, resume, *places, fork, trainer=trainer)


def evaluate(
    config_file: str,
    opts: Sequence[Any] = (),
    *,
    resume: bool = False,
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    fork: bool = False,
) -> dict[str, Any] | None:
    """Score the weights that MODEL.WEIGHTS names, or with `resume` the newest in OUTPUT_DIR.

    Arguments, result and errors are those of :func:`train`.
    """
    places = (num_gpus, num_machines, machine_rank, dist_url)
    return _launch(config_file, opts, resume, *places, fork, trainer=None)


def _launch(
    config_file: str,
    opts: Sequence[Any],
    resume: bool,
    num_gpus: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    fork: bool,
    *,
    trainer: type[Trainer] | None,
) -> dict[str, Any] | None:
    eval_only = trainer is None
    # a model that is scored gets all of its weights from its checkpoint
    fixed = ["MODEL.TIMM.PRETRAINED", False] if eval_only else []
    args = argparse.Namespace(  # as Detectron2's `default_setup` takes them
        config_file=config_file, opts=[*opts, *fixed], resume=resume, eval_only=eval_only
    )
    # the config is checked with models, which are made here
    with _one_thread() if fork else contextlib.nullcontext():
        on_gpu = _config(args).MODEL.DEVICE.startswith("cuda")
    return launch(
        in_process,
        num_gpus,
        num_machines=num_machines,
        machine_rank=machine_rank,
        dist_url=dist_url,
        on_gpu=on_gpu,
        args=(args, (), trainer or Trainer),
        fork=fork,
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Torch computes with one thread, so that a process that is forked later has lost none."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _config(args: argparse.Namespace) -> CfgNode:
    cfg = get_cfg_from_file(args.config_file, args.opts)
    cfg.freeze()
    return cfg


def in_process(
    args: argparse.Namespace,
    hooks: Sequence[HookBase] = (),
    trainer: type[Trainer] = Trainer,
) -> dict[str, Any]:
    """What one process does; returns the results of the last evaluation.

    Args:
        args: `config_file`, `opts`, `resume` and `eval_only`.
        hooks: further ones of a training.
        trainer: what trains.
    """
    # for authors of libraries; the last of them of processes that share gradients
    for text in ("TypedStorage is deprecated", "Grad strides do not"):
        warnings.filterwarnings("ignore", text)
    cfg = _config(args)
    # `Trainer` locks its folder too, but config.yaml and log.txt are written before. An evaluation
    # beside a training is all right: its results are written whole, at the end
    alone = comm.is_main_process() and not args.eval_only
    with folder_lock(cfg.OUTPUT_DIR) if alone else contextlib.nullcontext():
        # but a job that goes on with what it has begun
        if alone and not (was_restarted() and noted_run(cfg.OUTPUT_DIR).job == job_name()):
            trust = cfg.MODEL.KNET.UNSAFE_WEIGHTS
            note_run(cfg.OUTPUT_DIR, fresh=not args.resume, job=job_name(), trust=trust)
        require_shared(cfg.OUTPUT_DIR)
        set_up(cfg, args)
        register_data_sets(cfg)
        if args.eval_only:
            return _evaluate(cfg, args.resume)
        training = trainer(cfg)
        training.register_hooks(hooks)
        training.resume_or_load(resume=args.resume)
        return training.train()


def _evaluate(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    model = Trainer.build_model(cfg)
    checkpointer = KNetCheckpointer.from_config(cfg, model, cfg.OUTPUT_DIR, strict=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_tta(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def evaluate_predictor(predictor: KNetPredictor, datasets: Sequence[str] = ()) -> dict[str, Any]:
    """Score a model that is loaded, in this process.

    Args:
        predictor: the model.
        datasets: names of registered data sets; those of its config's DATASETS.TEST by default.

    Returns:
        The scores by task; with several data sets, by data set and task.

    Raises:
        UserError: no data set is named or registered, or the model looks at several views.
    """
    cfg = _scored(predictor.cfg, datasets)
    if cfg.TEST.AUG.ENABLED:
        raise UserError("TEST.AUG is scored with a config: name it with --config-file")
    return Trainer.test(cfg, predictor.model)


def evaluate_results(cfg: CfgNode, folder: str, datasets: Sequence[str] = ()) -> dict[str, Any]:
    """Score results that `knet predict --input` wrote, in this process and without a model.

    Args:
        cfg: of the model.
        folder: of the results.
        datasets: names of registered data sets; those of DATASETS.TEST by default.

    Returns, raises: as `knet.evaluation.of_results.evaluate_shards`; UserError as above.
    """
    return evaluate_shards(_scored(cfg, datasets), folder)


def calibrate_predictor(predictor: KNetPredictor, dataset: str = "") -> Calibration:
    """Panoptic quality under many thresholds, of a model that is loaded, in this process.

    Args:
        predictor: the model.
        dataset: name of a registered data set that the thresholds may be fitted to; by default
            that of its config's DATASETS.TEST.

    Raises:
        UserError: not one data set is named or registered, or the model looks at several views.
        ValueError: model or data set are not panoptic.
    """
    cfg = _scored(predictor.cfg, [dataset] if dataset else [])
    if len(cfg.DATASETS.TEST) > 1:
        raise UserError(f"thresholds fit one data set, not {', '.join(cfg.DATASETS.TEST)}: name it")
    if cfg.TEST.AUG.ENABLED:
        raise UserError("thresholds are found for one view of an image: set TEST.AUG.ENABLED False")
    (name,) = cfg.DATASETS.TEST
    return calibrate(predictor.model, Trainer.build_test_loader(cfg, name), name)


def _scored(cfg: CfgNode, datasets: Sequence[str]) -> CfgNode:
    """The config with these data sets, if any, as those to be scored, which are registered now."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = tuple(datasets) or cfg.DATASETS.TEST
    if not cfg.DATASETS.TEST:
        raise UserError("the model's config names no data set: name one with --dataset")
    register_data_sets(cfg, cfg.DATASETS.TEST)
    for name in cfg.DATASETS.TEST:
        require_registered(name)
    return cfg
