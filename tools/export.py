"""Export a model to ONNX or torch.export: image tensor in, final results out, in one graph.

    python tools/export.py --config-file configs/shapes/panoptic.yaml --output shapes.onnx \\
        MODEL.WEIGHTS output/demo/model_final.pth
    python tools/export.py --predictor folder --format torch_export --output model.pt2

docs/DEPLOY.md describes inputs, outputs and limits.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import knet  # noqa: F401  (registers the model; has to come before detectron2)

# isort: split
import torch

from knet.config import get_cfg_from_file
from knet.demo.files import writable_folder
from knet.errors import UserError, run_command
from knet.export.metadata import describe
from knet.export.onnx_file import save_onnx
from knet.export.program import DYNAMIC, build_graph, output_names, save_program, trace
from knet.predictor import KNetPredictor


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse arguments and export; returns the exit status."""
    args = _parser().parse_intermixed_args(arguments)
    return run_command("export.py", lambda: export(args, Path(args.output)))


def export(args: argparse.Namespace, out: Path) -> None:
    """Load the model that the arguments name and write its file.

    Raises:
        UserError, OSError, ImportError, KeyError, ValueError: what cannot be read, exported or
            written.
    """
    # known to be writable before minutes of work
    writable_folder(out.parent, "--output")
    if out.is_dir():
        raise UserError(f"--output {out} is a folder: name a file in it")
    begun = time.monotonic()

    def progress(step: str) -> None:
        print(f"{time.monotonic() - begun:4.0f} s  {step}", flush=True)

    progress("loading the model")
    onnx = args.format == "onnx"
    predictor = _predictor(args, onnx)
    cfg = predictor.cfg
    if cfg.TEST.AUG.ENABLED:
        raise ValueError("test-time augmentation is no part of a graph: set TEST.AUG.ENABLED False")
    model = predictor.model
    progress(
        f"tracing with {args.size[0]} x {args.size[1]} pixels, "
        f"for any {', '.join(args.dynamic) or 'picture of this size'}"
    )
    graph = build_graph(
        model,
        channel_order=cfg.INPUT.FORMAT,
        onnx=onnx,
        raw=args.raw,
        half=args.half,
        probabilities=args.probabilities,
    )
    program = trace(
        graph,
        example_size=args.size,
        dynamic=args.dynamic,
        input_dtype=getattr(torch, args.input_dtype),
    )
    metadata = describe(
        cfg,
        predictor.metadata,
        size_divisibility=model.size_divisibility,
        raw=args.raw,
        half=args.half,
        input_dtype=args.input_dtype,
    )
    if onnx:
        save_onnx(program, out, metadata, half=args.half, progress=progress)
    else:
        progress(f"writing {out}")
        save_program(program, out, metadata)
    progress(f"finished, {out.stat().st_size / 1e6:.1f} MB")
    print(f"outputs: {', '.join(output_names(program))}")


def _predictor(args: argparse.Namespace, onnx: bool) -> KNetPredictor:
    if args.predictor:
        device = "cpu" if onnx else None
        return KNetPredictor.from_pretrained(args.predictor, device=device, opts=tuple(args.opts))
    cfg = get_cfg_from_file(args.config_file, args.opts)
    if onnx:
        cfg.MODEL.DEVICE = "cpu"  # where a file for any runtime is traced
    if not cfg.MODEL.WEIGHTS:
        print("warning: MODEL.WEIGHTS is empty, the weights are random", file=sys.stderr)
    return KNetPredictor.from_config(cfg)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", help="of the model; its weights are MODEL.WEIGHTS")
    source.add_argument(
        "--predictor", metavar="FOLDER", help="of KNetPredictor.save_pretrained, or a Hub id"
    )
    parser.add_argument("--format", choices=["onnx", "torch_export"], default="onnx")
    parser.add_argument("--output", required=True, help="file to write, model.onnx or model.pt2")
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
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys and values")
    return parser


if __name__ == "__main__":
    sys.exit(main())
