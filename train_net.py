#!/usr/bin/env python3
"""Train or evaluate K-Net.

    python train_net.py --config-file configs/coco/panoptic/knet_r50_fpn_1x.yaml --num-gpus 8
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
    torchrun --nproc-per-node 8 train_net.py --config-file ...

`--num-gpus` is the number of processes on this machine; with MODEL.DEVICE cpu they use no GPU.
The flags are Detectron2's; `knet train` and `knet eval` do the same.
"""

from __future__ import annotations

import sys

import knet  # noqa: F401  (before Detectron2, which it fits to current libraries)

# isort: split
from detectron2.engine import default_argument_parser

from knet.errors import UserError, run_command
from knet.training.run import evaluate, train


def command() -> None:
    """Read the command line and train or evaluate, on one or several processes."""
    parser = default_argument_parser(epilog=__doc__)
    parser.set_defaults(dist_url="auto")  # a free port: two trainings may share a machine
    args = parser.parse_args()
    if not args.config_file:
        raise UserError("name a config with --config-file, e.g. configs/shapes/panoptic.yaml")
    (evaluate if args.eval_only else train)(
        args.config_file,
        args.opts,
        resume=args.resume,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        fork=True,
    )


if __name__ == "__main__":
    sys.exit(run_command("train_net.py", command))
