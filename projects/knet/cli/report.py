"""Turn an evaluation into one HTML page: scores, classes, confusions, best and worst images.

    knet report --config-file output/demo/config.yaml --weights output/demo/model_best.pth
    knet report --config-file output/demo/config.yaml --predictions FOLDER

Without --predictions the model is run over the data set. With it, nothing is run: the folder holds
results as files, as `knet predict --results FOLDER` writes them (without --confidence-threshold, so
that the config's thresholds hold, as without --predictions). The page needs no server and no other
file.
"""

from __future__ import annotations

import argparse

from knet.cli.model_arguments import add_model_arguments, load_config, load_predictor
from knet.cli.parser import Parser, show_news
from knet.errors import UserError
from knet.report.collect import MEASURES
from knet.report.make import make_report
from knet.visualization import DRAWN_SCORE


def add_arguments(parser: Parser) -> None:
    """The flags."""
    add_model_arguments(parser)
    parser.add_argument(
        "--dataset", metavar="NAME", help="by default the config's first test data set"
    )
    parser.add_argument("--predictions", metavar="FOLDER", help="results as files, not run anew")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="(%(default)s)")
    parser.add_argument(
        "--images",
        type=int,
        default=100,
        metavar="N",
        help="show at most so many, half of them the worst, half the best (%(default)s)",
    )
    parser.add_argument(
        "--task",
        choices=list(MEASURES),
        help="whose results are shown image by image; by default the richest that there is",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=DRAWN_SCORE,
        metavar="SCORE",
        help="instances with a lower score do not count in confusion and F1 (%(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    show_news()
    if args.images < 1:
        raise UserError(f"--images {args.images}: a report shows at least one")
    if not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold {args.score_threshold}: scores are 0 to 1")
    cfg = load_config(args)
    path = make_report(
        load_predictor(args) if cfg is None else cfg,
        output=args.output,
        dataset=args.dataset,
        predictions=args.predictions,
        task=args.task,
        num_images=args.images,
        score_threshold=args.score_threshold,
        facts={
            "Model": args.config_file or args.model,
            "Options": " ".join(map(str, args.opts)) or "none",
        },
    )
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")
