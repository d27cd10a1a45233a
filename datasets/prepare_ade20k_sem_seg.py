#!/usr/bin/env python3
"""Write the label PNGs that Detectron2's ade20k_sem_seg_train and ade20k_sem_seg_val expect.

    python datasets/prepare_ade20k_sem_seg.py

ADEChallengeData2016/annotations becomes ADEChallengeData2016/annotations_detectron2: 0 ("other")
turns into 255 (no label), classes 1 to 150 into 0 to 149. Files that are there already stay, so
the command can be given again after an interruption.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from knet.data import datasets_root
from knet.data.folders import label_png_paths
from knet.data.label_png import open_label_png, save_labels
from knet.errors import run_command
from knet.files import UNFINISHED, remove_unfinished

SPLITS = ("training", "validation")
NUM_CLASSES = 150
SOURCE = (
    "unpack ADEChallengeData2016.zip (scene parsing benchmark, http://sceneparsing.csail.mit.edu) "
    "in the folder of all data sets, or name that folder with --root"
)


def prepare(root: Path) -> tuple[int, int]:
    """Converts both splits.

    Args:
        root: folder of all data sets, which holds ``ADEChallengeData2016``.

    Returns:
        Numbers of files written, and of files that were there already.

    Raises:
        FileNotFoundError: naming what is missing.
        ValueError: naming a label PNG that is not ADE20K's.
    """
    base = root / "ADEChallengeData2016"
    todo: list[tuple[Path, Path]] = []
    done = 0
    for split in SPLITS:
        for folder in (base / "images" / split, base / "annotations" / split):
            if not folder.is_dir():
                raise FileNotFoundError(f"no folder {folder}; {SOURCE}")
        source = label_png_paths(base / "annotations" / split)
        if not source:
            raise FileNotFoundError(f"no label PNG in {base / 'annotations' / split}; {SOURCE}")
        for stem, path in source.items():
            target = base / "annotations_detectron2" / split / f"{stem}.png"
            if target.is_file() and target.stat().st_mtime_ns >= path.stat().st_mtime_ns:
                done += 1
            else:
                todo.append((path, target))
    remove_unfinished(base / "annotations_detectron2", f"**/*{UNFINISHED}*")
    for path, target in tqdm(todo, desc="ADE20K labels", unit="file"):
        save_labels(target, shifted(path))
    return len(todo), done


def shifted(path: Path) -> np.ndarray:
    """Labels of one file, (H, W) uint8, with 0 → 255 and the others one less.

    Raises:
        ValueError: naming the file, if it is no 8 bit label map of 150 classes.
    """
    mode, labels = open_label_png(path)
    if mode != "L" or labels.max() > NUM_CLASSES:
        raise ValueError(
            f"{path} (mode {mode}, largest value {int(labels.max())}) is no label map of the "
            f"scene parsing benchmark: those are 8 bit greyscale, up to {NUM_CLASSES}; {SOURCE}"
        )
    return labels - np.uint8(1)  # 0 wraps around to 255


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        help="folder of all data sets (default: $DETECTRON2_DATASETS, else datasets)",
    )
    args = parser.parse_args(arguments)
    written, done = prepare(args.root)
    print(f"{written} label PNGs written, {done} were there already")


if __name__ == "__main__":
    sys.exit(run_command("prepare_ade20k_sem_seg.py", main))
