"""Score a model on data sets: panoptic quality, mask AP and mIoU, as Detectron2's evaluators do.

    knet eval --config-file output/demo/config.yaml --weights output/demo/model_best.pth
    knet eval --model FOLDER --dataset coco_2017_val_panoptic
    knet eval --model FOLDER --dataset my_train --calibrate
    knet eval --model FOLDER --dataset my_val --results found

--calibrate finds the thresholds of panoptic segments with the highest panoptic quality. They fit
the images that they were found on: report scores on others.

--results scores what `knet predict --input --output FOLDER` found, and runs nothing.

Pictures are drawn beside their ground truth by `knet predict --dataset`; `knet report` shows all of
it in the browser.
"""

from __future__ import annotations

import argparse

from detectron2.utils.logger import setup_logger

from knet.cli.model_arguments import add_model_arguments, load_predictor, model_opts, read_config
from knet.cli.parser import Parser
from knet.errors import UserError
from knet.training.console import quiet_terminal
from knet.training.run import (
    calibrate_predictor,
    evaluate,
    evaluate_predictor,
    evaluate_results,
)


def add_arguments(parser: Parser) -> None:
    """The flags."""
    add_model_arguments(parser)
    parser.add_argument(
        "--dataset", nargs="+", metavar="NAME", help="in place of the config's DATASETS.TEST"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes (%(default)s)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="score the newest checkpoint in OUTPUT_DIR"
    )
    parser.add_argument(
        "--results", metavar="FOLDER", help="score Parquet shards of knet predict --input"
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="find MODEL.KNET.TEST.{THING,STUFF,OVERLAP}_THRESH; one data set, one process",
    )


def run(args: argparse.Namespace) -> None:
    """Score."""
    names = tuple(args.dataset or ())
    if args.results:
        if args.resume or args.num_gpus > 1 or args.calibrate:
            raise UserError("--results goes without --resume, --num-gpus and --calibrate")
        quiet_terminal([setup_logger(name="knet")])
        evaluate_results(read_config(args), args.results, names)
        return
    if args.calibrate:
        if args.resume or args.num_gpus > 1:
            raise UserError("--calibrate goes without --resume and --num-gpus; name --weights")
        if len(names) > 1:
            raise UserError("--calibrate takes one --dataset")
        quiet_terminal([setup_logger(name="knet")])
        print(calibrate_predictor(load_predictor(args), *names).describe())
        return
    if args.config_file:
        opts = [*model_opts(args), *(("DATASETS.TEST", names) if names else ())]
        evaluate(
            args.config_file, opts, resume=args.resume, num_gpus=args.num_gpus, fork=args.alone
        )
        return
    if args.resume or args.num_gpus > 1:
        raise UserError("--resume and --num-gpus go with --config-file")
    quiet_terminal([setup_logger(name="knet")])
    evaluate_predictor(load_predictor(args), names)
