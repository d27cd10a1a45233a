#!/usr/bin/env python3
"""Turn palette, 16 bit and 1 bit label PNGs into the 8 bit greyscale ones that K-Net reads.

    python datasets/prepare_label_pngs.py IN OUT
    python datasets/prepare_label_pngs.py IN OUT --map 7=0 11=1 --ignore 0 1000
    python datasets/prepare_label_pngs.py IN OUT --map 255=1      # binary masks of 0 and 255

Values are kept unless --map names them; palettes are read as indices. OUT gets the same relative
paths and must be new or empty; IN is only read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from knet.data.defects import DataError
from knet.data.folders import label_png_paths
from knet.data.images import MAX_PIXELS
from knet.data.label_png import open_label_png, save_labels
from knet.errors import run_command
from knet.modeling.targets import IGNORE_LABEL


def convert_folder(
    source: Path, target: Path, mapping: Mapping[int, int], max_pixels: int = MAX_PIXELS
) -> int:
    """Converts every PNG below a folder.

    Args:
        source: folder of label PNGs with one channel, at any depth.
        target: folder to write to, new or empty.
        mapping: old value → new value, 0 to 255; other values stay.
        max_pixels: larger PNGs are refused.

    Returns:
        The number of files written.

    Raises:
        FileNotFoundError: if there is no source folder, or no PNG in it.
        ValueError: if the target is not empty or overlaps the source, a new value does not fit,
            or a file cannot be converted; files before it are written.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no folder {source}")
    inside, outside = source.resolve(), target.resolve()
    if inside == outside or inside in outside.parents or outside in inside.parents:
        raise ValueError(f"{target} and {source} overlap: name another folder for the output")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not empty: name a new folder, or remove that one")
    for old, new in mapping.items():
        if not 0 <= new <= 255:
            raise ValueError(f"--map {old}={new}: the new value must be 0 to 255")
    files = label_png_paths(source)
    if not files:
        raise FileNotFoundError(f"no PNG below {source}")
    for stem, path in tqdm(files.items(), desc="label PNGs", unit="file"):
        save_labels(target / f"{stem}.png", convert(path, mapping, max_pixels))
    return len(files)


def convert(path: Path, mapping: Mapping[int, int], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads one label PNG and maps its values.

    Args:
        path: of a PNG with one channel.
        mapping: old value → new value; other values stay.
        max_pixels: a larger PNG is refused.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: naming the file, if it cannot be read, has several channels, or holds a
            value that does not fit into 8 bit and is not mapped.
    """
    try:
        mode, values = open_label_png(path, max_pixels=max_pixels)
    except DataError as error:
        if error.defect is None or error.defect.kind != "image-too-large":
            raise
        raise ValueError(f"{path} has more pixels than --max-pixels {max_pixels}") from error
    if values.ndim != 2:
        raise ValueError(
            f"{path} has {values.shape[2]} channels (mode {mode}): colours are no class indices"
        )
    found, rows = np.unique(values, return_inverse=True)
    labels = [mapping.get(int(value), int(value)) for value in found]
    unfit = [int(old) for old, new in zip(found, labels) if not 0 <= new <= 255]
    if unfit:
        raise ValueError(
            f"{path} holds {unfit[-1]}, which does not fit into 8 bit; say what it means, with "
            f"--map {unfit[-1]}=NEW or --ignore {unfit[-1]}"
        )
    return np.array(labels, np.uint8)[rows].reshape(values.shape)


def _pair(text: str) -> tuple[int, int]:
    old, _, new = text.partition("=")
    try:
        return int(old), int(new)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW, two whole numbers") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="IN", help="folder of label PNGs")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder to write, new or empty")
    parser.add_argument(
        "--map", type=_pair, nargs="+", default=[], metavar="OLD=NEW", help="values to replace"
    )
    parser.add_argument(
        "--ignore",
        type=int,
        nargs="+",
        default=[],
        metavar="VALUE",
        help=f"values that mean `no label`; they become {IGNORE_LABEL}",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"larger PNGs are refused (default {MAX_PIXELS}); the config has INPUT.MAX_PIXELS",
    )
    args = parser.parse_args(arguments)
    olds = [old for old, _ in args.map] + args.ignore
    twice = sorted({old for old in olds if olds.count(old) > 1})
    if twice:
        parser.error(f"--map and --ignore name {twice[0]} twice")
    mapping = {**dict(args.map), **dict.fromkeys(args.ignore, IGNORE_LABEL)}
    count = convert_folder(args.source, args.target, mapping, args.max_pixels)
    print(f"{count} label PNGs written to {args.target}")


if __name__ == "__main__":
    sys.exit(run_command("prepare_label_pngs.py", main))
