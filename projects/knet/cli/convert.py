"""Convert K-Net checkpoints between OpenMMLab's layout and Detectron2's, or compare a config.

    # OpenMMLab's, or any other weights that MODEL.WEIGHTS takes -> .pth or .safetensors
    knet convert published.pth knet.safetensors \\
        --config-file configs/coco/panoptic/knet_r50_fpn_1x.yaml
    # and back
    knet convert knet.safetensors openmmlab.pth --to-openmmlab
    # does the config build the published model? Ends with 1 if anything differs
    knet convert --check shapes.json --config-file configs/coco/panoptic/knet_r50_fpn_1x.yaml

With --config-file the weights must fit that model entirely. MODEL.WEIGHTS also takes OpenMMLab's
files as they are; converting is not needed to use them.
"""

from __future__ import annotations

import argparse

from knet.checkpoint.convert import compare_with_list, convert_checkpoint
from knet.cli.parser import Parser, show_news
from knet.errors import UserError


def add_arguments(parser: Parser) -> None:
    """The flags."""
    parser.add_inputs("FILE", "the weights to convert, then the .pth or .safetensors to write")
    parser.add_argument("--config-file", metavar="FILE", help="config of the model")
    parser.add_argument("--check", metavar="SHAPES.json", help="list of names and shapes")
    parser.add_argument("--to-openmmlab", action="store_true", help="write OpenMMLab's layout")
    parser.add_argument(
        "--trust", action="store_true", help="read the weights even if that runs code they hold"
    )


def run(args: argparse.Namespace) -> int:
    """Convert or compare; returns the exit status."""
    if args.check and (args.inputs or not args.config_file):
        raise UserError("--check compares --config-file with a list, and takes no other file")
    if not args.check and len(args.inputs) != 2:
        raise UserError("name the weights to convert and the file to write, or --check")
    show_news()
    if args.check:
        equal, text = compare_with_list(args.check, args.config_file, args.opts)
        print(text)
        return 0 if equal else 1
    text = convert_checkpoint(
        *args.inputs,
        config_file=args.config_file,
        opts=args.opts,
        to_openmmlab=args.to_openmmlab,
        trust=args.trust,
    )
    print(text)
    return 0
