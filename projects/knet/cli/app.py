"""Open a page for trying a model: drop a photo, switch results, move thresholds.

    knet app --model panoptic_r50_3x

The page is served to this machine only, unless --host says otherwise.
"""

from __future__ import annotations

import argparse

from knet.cli.model_arguments import add_model_arguments, load_predictor
from knet.cli.parser import Parser, show_news


def add_arguments(parser: Parser) -> None:
    """The flags."""
    add_model_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="that the page is served at; 0.0.0.0 lets everyone in the network in (%(default)s)",
    )
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="(%(default)s)")
    parser.add_argument("--open", action="store_true", help="open it in the browser")


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    from knet.app import serve

    show_news()
    name = args.config_file or args.model
    serve(load_predictor(args), name=name, host=args.host, port=args.port, open_browser=args.open)
