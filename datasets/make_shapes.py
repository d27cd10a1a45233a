"""Writes the toy data set *shapes* to $DETECTRON2_DATASETS/shapes (by default ./datasets/shapes).

python datasets/make_shapes.py --seed 0 --train 1600 --val 200
python datasets/make_shapes.py --clips 20
"""

import argparse
import logging
import sys
from pathlib import Path

from knet.data import datasets_root, write_shapes
from knet.data.shapes.clip_writer import write_clips
from knet.errors import run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=1600, help="number of training scenes")
    parser.add_argument("--val", type=int, default=200, help="number of validation scenes")
    parser.add_argument(
        "--clips",
        type=int,
        help="write so many clips of moving scenes with their truth, no pictures",
    )
    parser.add_argument("--size", type=int, default=96, help="side of a picture in pixels")
    parser.add_argument("--root", type=Path, help="folder to write to, instead of the above")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    root = datasets_root() / "shapes" if args.root is None else args.root
    if args.clips is not None:
        folder = write_clips(root, num_clips=args.clips, seed=args.seed, size=args.size)
        print(f"{args.clips} clips in {folder}")
        return
    for split, count in (("train", args.train), ("val", args.val)):
        folder = write_shapes(root, split=split, num_scenes=count, seed=args.seed, size=args.size)
        print(f"{count} scenes in {folder}")


if __name__ == "__main__":
    sys.exit(run_command("make_shapes.py", main))
