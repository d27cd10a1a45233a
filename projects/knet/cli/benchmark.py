"""Speed, memory and operations of a model on this machine.

    knet benchmark --model panoptic_r50_3x
    knet benchmark photo.jpg --model FOLDER --repeats 50 --json speed.json

Without --weights a config or a published model is measured with random ones: the network takes the
same time, results may take another. Operations are counted as fvcore does: a multiplication with
its addition is one.
"""

from __future__ import annotations

import argparse

from knet.benchmark import SIZE, benchmark, format_benchmark, random_predictor
from knet.cli.model_arguments import add_model_arguments, load_config, load_predictor, model_opts
from knet.cli.parser import Parser, show_news
from knet.files import write_json


def add_arguments(parser: Parser) -> None:
    """The flags."""
    parser.add_inputs("PICTURE", "files, taken in turn; a random picture without any")
    add_model_arguments(parser)
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=SIZE,
        metavar=("HEIGHT", "WIDTH"),
        help="of the random picture, before it is resized as the config says (480 640)",
    )
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="pictures at once (%(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=20, metavar="N", help="times to measure (%(default)s)"
    )
    parser.add_argument(
        "--by-operator", action="store_true", help="operations of each module and operator"
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers there too")


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    show_news()
    opts = model_opts(args)
    cfg = None if dict(zip(opts[::2], opts[1::2])).get("MODEL.WEIGHTS") else load_config(args)
    predictor = load_predictor(args) if cfg is None else random_predictor(cfg)
    numbers = benchmark(
        predictor, args.inputs, size=args.size, batch=args.batch, repeats=args.repeats
    )
    print(format_benchmark(numbers, by_operator=args.by_operator))
    if args.json:
        write_json(args.json, {k: v for k, v in numbers.items() if k != "table"}, indent=1)
