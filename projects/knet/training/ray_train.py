"""Training in the workers of Ray Train.

trainer = TorchTrainer(
    ray_train.train,
    train_loop_config={"config_file": "configs/coco/panoptic/knet_r50_fpn_1x.yaml"},
    scaling_config=ScalingConfig(num_workers=8, use_gpu=True),
    run_config=RunConfig(storage_path="/mnt/shared", failure_config=FailureConfig(max_failures=-1)),
)
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from knet.config import get_cfg_from_file
from knet.errors import UserError, nearest
from knet.training.group import local_groups
from knet.training.run import in_process

__all__ = ["missing", "train"]

_KEYS = ("config_file", "opts")
# of the output folder, what Ray gets as the checkpoint of a training that is complete
_RESULT = ("model_final.pth", "config.yaml")


def train(config: Mapping[str, Any]) -> None:
    """What each worker of Ray's `TorchTrainer` does: train, or go on where workers were lost.

    Checkpoints go to OUTPUT_DIR, which must be the same folder on all machines. A relative one lies
    in the folder of the run on Ray's storage. The newest whole checkpoint there is gone on with,
    whether Ray has started the workers anew after a failure or somebody the run by its name.

    Ray gets the scores of every evaluation as metrics, and of a training that is complete the
    weights and the config as a checkpoint.

    Args:
        config: `config_file`, a YAML file that all machines have, and, if wanted, `opts`, a list of
            config keys and values.

    Raises:
        UserError: Ray is missing, a key is unknown, workers have no GPUs but the config wants
            them, or OUTPUT_DIR is not shared.
        ValueError, OSError: as of `knet.training.run.train`.
    """
    ray_train = _ray_train()
    unknown = [key for key in config if key not in _KEYS]
    if unknown or "config_file" not in config:
        wrong = f"{unknown[0]!r} is none: {nearest(unknown[0], _KEYS)}" if unknown else "one is due"
        raise UserError(f"train_loop_config takes config_file and opts; {wrong}")
    opts = list(config.get("opts", ()))
    cfg = get_cfg_from_file(config["config_file"], opts)
    grouped = dist.is_initialized()
    if grouped and cfg.MODEL.DEVICE.startswith("cuda") != ("nccl" in dist.get_backend()):
        raise UserError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but Ray's workers speak {dist.get_backend()}: "
            "ScalingConfig(use_gpu=True) goes with cuda, use_gpu=False with MODEL.DEVICE cpu"
        )
    context = ray_train.get_context()
    output = _output_folder(cfg.OUTPUT_DIR, context)
    args = argparse.Namespace(
        config_file=config["config_file"],
        opts=[*opts, "OUTPUT_DIR", output],
        resume=True,
        eval_only=False,
    )
    if grouped:
        with local_groups(context.get_node_rank()):
            _train(ray_train, args)
    else:
        _train(ray_train, args)


def _train(ray_train: Any, args: argparse.Namespace) -> None:
    results = in_process(args, hooks=[_Report(ray_train)])
    metrics = flatten_results_dict(results or {})
    if not comm.is_main_process():
        ray_train.report(metrics)
        return
    output = Path(args.opts[-1])
    with tempfile.TemporaryDirectory() as folder:  # of which Ray keeps a copy that is its own
        for name in _RESULT:
            shutil.copy(output / name, folder)
        ray_train.report(metrics, checkpoint=ray_train.Checkpoint.from_directory(folder))


def _output_folder(wanted: str, context: Any) -> str:
    if os.path.isabs(wanted):
        return wanted
    storage = context.get_storage()
    kind = storage.storage_filesystem.type_name
    if kind != "local":
        raise UserError(
            f"Ray's storage is of kind {kind}, where checkpoints cannot be written step by step: "
            "set OUTPUT_DIR to an absolute path that all machines mount"
        )
    return os.path.join(storage.experiment_fs_path, wanted)


def missing(error: ImportError) -> str:
    """What to install, for who cannot import Ray Train."""
    return (
        f"training with Ray needs Ray Train, which cannot be imported ({error}): run "
        '`pip install "ray[train]"`, or `pip install -e .[ray]` in the repository root'
    )


def _ray_train() -> Any:
    try:
        return importlib.import_module("ray.train")
    except ImportError as error:
        raise UserError(missing(error)) from error


class _Report(HookBase):
    """Tells Ray the scores of the evaluations between; all workers have to call `report`."""

    def __init__(self, ray_train: Any) -> None:
        self._ray_train = ray_train

    def after_step(self) -> None:
        done, period = self.trainer.iter + 1, self.trainer.cfg.TEST.EVAL_PERIOD
        if period > 0 and done % period == 0 and done < self.trainer.max_iter:
            results = getattr(self.trainer, "_last_eval_results", None)
            self._ray_train.report({**flatten_results_dict(results or {}), "step": done})
