#!/usr/bin/env python3
"""Train or evaluate K-Net.

    python train_net.py --config-file configs/coco/panoptic/knet_r50_fpn_1x.yaml --num-gpus 8
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
    torchrun --nproc-per-node 8 train_net.py --config-file ...

`--num-gpus` is the number of processes on this machine; with MODEL.DEVICE cpu they use no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings

if __name__ in ("__main__", "__mp_main__"):  # the latter in processes of a training
    # for authors of libraries; the last of them of processes that share gradients
    for _text in ("TypedStorage is deprecated", "Grad strides do not"):
        warnings.filterwarnings("ignore", _text)

import knet  # noqa: F401  (before Detectron2, which it fits to current libraries)

# isort: split
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.config import get_cfg_from_file
from knet.data.custom import register_builtin, register_custom
from knet.errors import UserError, run_command
from knet.training.console import set_up
from knet.training.launch import launch
from knet.training.stop import folder_lock
from knet.training.trainer import Trainer


def setup(args: argparse.Namespace) -> CfgNode:
    """Config from file and command line."""
    # a model that is scored gets all of its weights from its checkpoint
    fixed = ["MODEL.TIMM.PRETRAINED", False] if args.eval_only else []
    cfg = get_cfg_from_file(args.config_file, [*args.opts, *fixed])
    cfg.freeze()
    return cfg


def main(args: argparse.Namespace) -> dict:
    """What one process does; returns the results of the last evaluation."""
    cfg = setup(args)
    # `Trainer` locks its folder too, but config.yaml and log.txt are written before. An evaluation
    # beside a training is all right: its results are written whole, at the end
    alone = comm.is_main_process() and not args.eval_only
    with folder_lock(cfg.OUTPUT_DIR) if alone else contextlib.nullcontext():
        return _run(cfg, args)


def _run(cfg: CfgNode, args: argparse.Namespace) -> dict:
    set_up(cfg, args)
    register_builtin([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    register_custom(cfg)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = KNetCheckpointer.from_config(cfg, model, cfg.OUTPUT_DIR, strict=True)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_tta(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def command() -> None:
    """Read the command line and train or evaluate, on one or several processes."""
    parser = default_argument_parser(epilog=__doc__)
    parser.set_defaults(dist_url="auto")  # a free port: two trainings may share a machine
    arguments = parser.parse_args()
    if not arguments.config_file:
        raise UserError("name a config with --config-file, e.g. configs/shapes/panoptic.yaml")
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        on_gpu=setup(arguments).MODEL.DEVICE.startswith("cuda"),
        args=(arguments,),
    )


if __name__ == "__main__":
    sys.exit(run_command("train_net.py", command))
