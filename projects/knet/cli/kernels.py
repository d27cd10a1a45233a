"""Draw what the kernels of a model do.

    knet kernels photo.jpg --model FOLDER --output kernels
    knet kernels --dataset coco_2017_val_panoptic --images 200 --model panoptic_r50_3x

For each picture: the masks of the best kernels before the first and after every round
(`NAME_rounds.png`) and their class scores (`NAME_classes.png`; not for semantic models, whose
kernels are their classes). For a data set: where each instance kernel tends to fire
(`DATASET_average.png`).
"""

from __future__ import annotations

import argparse
import sys

from knet.cli.model_arguments import add_model_arguments, load_predictor
from knet.cli.parser import Parser, show_news
from knet.errors import UserError
from knet.kernel_pictures import write_average_masks, write_kernel_pictures
from knet.predict.files import find_pictures, require_unique_stems, writable_folder


def add_arguments(parser: Parser) -> None:
    """The flags."""
    parser.add_inputs("PICTURE", "files, folders or globs in quotes")
    add_model_arguments(parser)
    parser.add_argument("--dataset", metavar="NAME", help="registered data set, for the averages")
    parser.add_argument(
        "--images", type=int, default=200, metavar="N", help="of the data set, from its start"
    )
    parser.add_argument(
        "--kernels", type=int, default=8, metavar="N", help="kernels to follow, the best ones"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="whose scores to show; by default those that a kernel answers to",
    )
    parser.add_argument(
        "--output", default="kernels", metavar="FOLDER", help="for the PNGs (%(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Run the model, write and list the pictures."""
    show_news()
    if bool(args.inputs) == bool(args.dataset):
        raise UserError("name pictures or a --dataset, one of them")
    if args.dataset and args.classes:
        raise UserError("--classes goes with pictures: the averages of a --dataset show no scores")
    if min(args.images, args.kernels) < 1:
        raise UserError("--images and --kernels must be 1 or more")
    writable_folder(args.output, "--output")
    if args.dataset:
        predictor = load_predictor(args)
        paths = [write_average_masks(predictor, args.dataset, args.output, num_images=args.images)]
    else:
        found = find_pictures(args.inputs)
        if found.problems:
            raise UserError("; ".join(found.problems))
        for note in found.left_out:
            print(f"knet kernels: {note}", file=sys.stderr)
        require_unique_stems(found.pictures, "--output")
        paths = write_kernel_pictures(
            load_predictor(args),
            found.pictures,
            args.output,
            num_kernels=args.kernels,
            classes=args.classes,
        )
    print("\n".join(map(str, paths)))
