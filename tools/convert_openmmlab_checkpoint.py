#!/usr/bin/env python3
"""Convert K-Net checkpoints between OpenMMLab's layout and Detectron2's, or compare a config.

    # OpenMMLab's, or any other weights that MODEL.WEIGHTS takes -> .pth or .safetensors
    python tools/convert_openmmlab_checkpoint.py published.pth knet.safetensors \\
        --config-file configs/coco/panoptic/knet_r50_fpn_1x.yaml
    # and back
    python tools/convert_openmmlab_checkpoint.py knet.safetensors openmmlab.pth --to-openmmlab
    # does the config build the published model? Ends with 1 if anything differs
    python tools/convert_openmmlab_checkpoint.py --check shapes.json \\
        --config-file configs/coco/panoptic/knet_r50_fpn_1x.yaml

With --config-file the weights must fit that model entirely. MODEL.WEIGHTS also takes OpenMMLab's
files as they are; converting is not needed to use them.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import knet  # noqa: F401  (registers the model; has to come before detectron2)

# isort: split
from detectron2.modeling import build_model
from torch import nn

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.published_names import export_published
from knet.checkpoint.read_file import read_file
from knet.checkpoint.recognise import recognise
from knet.checkpoint.shape_list import Shapes, compare, read_shapes, with_classes_of
from knet.checkpoint.write_file import write_openmmlab, write_weights
from knet.config import get_cfg_from_file
from knet.errors import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse arguments, convert or compare; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", nargs="?", metavar="IN", help="weights to convert")
    parser.add_argument("output", nargs="?", metavar="OUT", help=".pth or .safetensors")
    parser.add_argument("--config-file", help="config of the model")
    parser.add_argument("--check", metavar="SHAPES.json", help="list of names and shapes")
    parser.add_argument("--to-openmmlab", action="store_true", help="write OpenMMLab's layout")
    parser.add_argument(
        "--trust", action="store_true", help="read IN even if that runs code that it holds"
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys and values"
    )
    args = parser.parse_args(arguments)
    if args.check and (args.input or not args.config_file):
        parser.error("--check compares --config-file with a list, and takes no IN and OUT")
    if not args.check and not args.output:
        parser.error("name IN and OUT, or --check")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work = _check if args.check else _convert
    return run_command("convert_openmmlab_checkpoint.py", lambda: work(args))


def _check(args: argparse.Namespace) -> int:
    shapes = read_shapes(args.check)
    equal, text = compare(_build(args, shapes), shapes)
    print(text)
    return 0 if equal else 1


def _convert(args: argparse.Namespace) -> int:
    weights = recognise(read_file(args.input, trust=args.trust), {}, name=args.input)
    if weights.heuristics:
        raise ValueError(
            f"{args.input}: {weights.kind}, which are matched with a model by Detectron2's "
            "heuristics: name the file in MODEL.WEIGHTS"
        )
    state = weights.state
    if args.config_file:
        model = _build(args, {name: value.shape for name, value in state.items()})
        KNetCheckpointer(model, strict=True, trust=args.trust).load(args.input)  # refuses misfits
    if args.to_openmmlab:
        write_openmmlab(args.output, export_published(state), classes=weights.classes)
    else:
        write_weights(args.output, state, classes=weights.classes)
    print(f"{args.output}: {len(state)} weights of {args.input} ({weights.kind})")
    return 0


def _build(args: argparse.Namespace, shapes: Shapes) -> nn.Module:
    cfg = get_cfg_from_file(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    return build_model(with_classes_of(cfg, shapes))


if __name__ == "__main__":
    sys.exit(main())
