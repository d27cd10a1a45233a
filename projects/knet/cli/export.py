"""Export a model to ONNX or torch.export: image tensor in, final results out, in one graph.

    knet export --model output/demo/model --output model.onnx
    knet export --model FOLDER --format torch_export --output model.pt2

docs/DEPLOY.md describes inputs, outputs and limits; tools/run_onnx.py runs the file.
"""

from __future__ import annotations

import argparse

from knet.cli.model_arguments import add_model_arguments, load_predictor, model_opts
from knet.cli.parser import Parser, show_news
from knet.export.make import export_model
from knet.export.program import DYNAMIC


def add_arguments(parser: Parser) -> None:
    """The flags."""
    add_model_arguments(parser)
    parser.add_argument("--format", choices=["onnx", "torch_export"], default="onnx")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="to write, model.onnx or model.pt2"
    )
    parser.add_argument("--raw", action="store_true", help="class and mask logits, no results")
    parser.add_argument(
        "--probabilities", action="store_true", help="with semantic maps, the scores of all classes"
    )
    parser.add_argument(
        "--dynamic",
        nargs="*",
        choices=DYNAMIC,
        default=["height", "width"],
        help="sides of the image that may differ from call to call; batch with --raw only",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        default=[320, 416],
        metavar=("HEIGHT", "WIDTH"),
        help="of the image to trace with, kept for sides that are not dynamic",
    )
    parser.add_argument("--input-dtype", choices=["uint8", "float32"], default="uint8")
    parser.add_argument(
        "--half",
        action="store_true",
        help="float16 but for sums and results; ONNX files become half as large, those of "
        "torch_export keep float32 weights",
    )


def run(args: argparse.Namespace) -> None:
    """Load the model and write its file."""
    show_news()
    # a file for any runtime is traced on the CPU
    device = ["MODEL.DEVICE", "cpu"] if args.format == "onnx" else []
    export_model(
        load_predictor(args, [*model_opts(args), *device]),
        args.output,
        form=args.format,
        size=args.size,
        dynamic=args.dynamic,
        input_dtype=args.input_dtype,
        half=args.half,
        raw=args.raw,
        probabilities=args.probabilities,
        say=lambda text: print(text, flush=True),
    )
