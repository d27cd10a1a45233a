"""Export a model: pixels in, final results out, in one graph; and compare it with the model.

    knet export --model output/demo/model --output model.onnx --data nuclei_val
    knet export --model FOLDER --format openvino --precision int8 --pictures photos --output m.xml
    knet export --model FOLDER --format aot_inductor --output model.pt2

The exit status is 1 if the file's results are further from the model's than the table says that
they may be; the file is kept. docs/DEPLOY.md describes inputs, outputs and limits; `knet run` runs
ONNX and OpenVINO files, without PyTorch.
"""

from __future__ import annotations

import argparse

from knet.cli.model_arguments import add_model_arguments, load_predictor, model_opts
from knet.cli.parser import Parser, show_news
from knet.errors import UserError
from knet.export.make import FORMS, PRECISIONS, Choices, export_model
from knet.export.program import DYNAMIC


def add_arguments(parser: Parser) -> None:
    """The flags."""
    add_model_arguments(parser)
    parser.add_argument("--format", choices=list(FORMS), default="onnx")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="to write, .onnx, .xml or .pt2"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="float16 but for sums and results; int8 for the convolutions of backbone and neck, "
        "with ranges of --pictures or --data (%(default)s)",
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
        "--resize",
        action="store_true",
        help="the graph takes a whole picture (height, width, 3) and resizes it itself",
    )
    test = parser.add_argument_group("pictures, and the check")
    test.add_argument(
        "--pictures", nargs="+", default=[], metavar="PATH", help="files, folders, globs"
    )
    test.add_argument(
        "--data", default="", metavar="NAME", help="a data set that file and model are scored on"
    )
    test.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the file with the model (default)",
    )


def run(args: argparse.Namespace) -> int:
    """Load the model, write its file, check it; returns the exit status."""
    show_news()
    if args.data and not args.check:
        raise UserError("--data is to be scored on, which --no-check leaves out")
    # a file for any runtime is traced on the CPU
    device = ["MODEL.DEVICE", "cpu"] if args.format in ("onnx", "openvino") else []
    choices = Choices(
        form=args.format,
        precision=args.precision,
        size=args.size,
        dynamic=args.dynamic,
        input_dtype=args.input_dtype,
        raw=args.raw,
        probabilities=args.probabilities,
        takes_picture=args.resize,
    )
    path, report = export_model(
        load_predictor(args, [*model_opts(args), *device]),
        args.output,
        choices,
        pictures=args.pictures,
        data=args.data,
        checked=args.check,
        say=lambda text: print(text, flush=True),
    )
    if report is None:
        return 0
    print(f"\n{report.table()}")
    if report.failed:
        print(f"\n{path} is not as the model: {'; '.join(report.failed)}")
    return int(bool(report.failed))
