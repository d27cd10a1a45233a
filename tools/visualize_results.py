"""Draw a model's results on images of a data set beside photo and ground truth.

    python tools/visualize_results.py --config-file configs/coco/panoptic/knet_r50_fpn_3x.yaml \\
        --dataset coco_2017_val_panoptic --images 139 285 \\
        --output sheets MODEL.WEIGHTS model_final.pth

Each image gives one PNG; their paths are printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import knet  # noqa: F401  (registers the model; has to come before detectron2)

# isort: split
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.config import get_cfg_from_file
from knet.data.custom import register_builtin, register_custom
from knet.demo.model_arguments import split_config_keys
from knet.errors import UserError, run_command
from knet.predictor import KNetPredictor
from knet.visualization import DRAWN_SCORE, TASKS, write_sheets


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument(
        "--dataset", help="registered data set; by default the config's first test data set"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--images", nargs="+", metavar="ID", help="image ids, or positions in the data set from 0"
    )
    which.add_argument("--num", type=int, default=8, help="number of images from the start")
    parser.add_argument(
        "--task", choices=list(TASKS), help="by default the richest that the model gives"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=DRAWN_SCORE,
        help="of drawn instances (%(default)s)",
    )
    parser.add_argument("--output", default="sheets", help="folder for the PNGs")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    return parser


def main(arguments: Sequence[str] | None = None) -> list[str]:
    """Parse arguments, run the model, write and list the sheets."""
    args = get_parser().parse_args(arguments)
    if args.images:
        args.images, keys = split_config_keys(args.images)
        args.opts = keys + args.opts

    setup_logger(name="knet")
    cfg = get_cfg_from_file(args.config_file, args.opts)
    names = [args.dataset] if args.dataset else list(cfg.DATASETS.TEST)
    tasks = [task for task in TASKS if cfg.MODEL.KNET.TEST[f"{task.upper()}_ON"]]
    if not names or not tasks:
        raise UserError(
            "DATASETS.TEST is empty: name a --dataset"
            if tasks
            else "MODEL.KNET.TEST turns on no result: set INSTANCE_ON, PANOPTIC_ON or SEMANTIC_ON"
        )
    register_builtin([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *names])
    register_custom(cfg)
    model = build_model(cfg)
    KNetCheckpointer.from_config(cfg, model, strict=True).load(cfg.MODEL.WEIGHTS)
    paths = write_sheets(
        KNetPredictor(cfg, model, MetadataCatalog.get(names[0])),
        names[0],
        args.output,
        args.images or args.num,
        task=args.task or tasks[0],
        score_threshold=args.score_threshold,
    )
    print("\n".join(paths))
    return paths


if __name__ == "__main__":

    def command() -> None:
        main()

    sys.exit(run_command("visualize_results.py", command))
