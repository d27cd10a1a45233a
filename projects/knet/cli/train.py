"""Train a model: on a folder of your own, with settings chosen from its data, or as a config says.

    knet train --data photos --epochs 50 --output output/mine
    knet train --config-file configs/coco/panoptic/knet_r50_fpn_1x.yaml --num-gpus 8

Config keys and values at the end of the line come last. With --config-file this is what
train_net.py does, which has Detectron2's flags for several machines.
"""

from __future__ import annotations

import argparse
import contextlib
import math

from knet.cli.parser import Parser
from knet.errors import UserError
from knet.visualization import TASKS

# flags that choose what a config fixes
_OF_A_FOLDER = ("val", "model", "task", "epochs", "minutes", "batch")


def add_arguments(parser: Parser) -> None:
    """The flags."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--data",
        metavar="FOLDER",
        help="pictures and labels: COCO, YOLO, label or instance PNGs, Pascal VOC, labelme, "
        "Cityscapes, colour masks; the format is recognised",
    )
    which.add_argument("--config-file", metavar="FILE", help="a config, which says everything")
    folder = parser.add_argument_group("with --data")
    folder.add_argument(
        "--val", metavar="FOLDER", help="validation data; by default a part is split off"
    )
    folder.add_argument(
        "--model", metavar="NAME", help="to start from (see `knet zoo`), or a saved folder"
    )
    folder.add_argument("--task", choices=list(TASKS), help="by default what the labels give")
    length = folder.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=_positive, metavar="N", help="passes over the data")
    length.add_argument(
        "--minutes",
        type=_positive,
        metavar="M",
        help="that the command may take, in place of it (20 on a CPU)",
    )
    folder.add_argument(
        "--batch",
        type=_batch,
        metavar="N",
        help="pictures a step, or auto: as data and memory allow (default)",
    )
    parser.add_argument("--output", metavar="FOLDER", help="for everything that is written")
    parser.add_argument("--seed", type=int, help="of weights, batches and splits")
    parser.add_argument(
        "--num-gpus",
        type=_whole,
        default=1,
        metavar="N",
        help="processes, of a GPU each (%(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="go on where a run stopped")


def run(args: argparse.Namespace) -> None:
    """Train."""
    if args.data:
        from knet.recipe import train_folder

        options = ("val", "model", "task", "epochs", "minutes", "batch", "output", "seed")
        given = {name: getattr(args, name) for name in options}
        chosen = {name: value for name, value in given.items() if value is not None}
        train_folder(
            args.data, opts=args.opts, num_gpus=args.num_gpus, resume=args.resume, **chosen
        )
        return
    for name in _OF_A_FOLDER:
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name} goes with --data: with --config-file, the config says it (keys and "
                "values at the end of the line override it)"
            )
    from knet.training.run import train

    opts = [*(("OUTPUT_DIR", args.output) if args.output else ())]
    opts += [] if args.seed is None else ["SEED", args.seed]
    opts += args.opts
    train(args.config_file, opts, num_gpus=args.num_gpus, resume=args.resume, fork=args.alone)


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is no number above 0")


def _whole(text: str) -> int:
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is no number from 1 on")


def _batch(text: str) -> int | None:
    return None if text == "auto" else _whole(text)
