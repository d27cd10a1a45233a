#!/usr/bin/env python3
"""Write the label files that Detectron2's cityscapes_fine_sem_seg_{train,val} and
cityscapes_fine_panoptic_{train,val} expect.

    pip install cityscapesscripts
    python datasets/prepare_cityscapes.py

In cityscapes/gtFine appear `*_labelTrainIds.png` beside the polygons, and the folder and JSON
`cityscapes_panoptic_{train,val}`. What is there already stays, so the command can be given again
after an interruption.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from knet.data import datasets_root
from knet.errors import run_command
from knet.files import UNFINISHED, remove_unfinished, whole_file, whole_folder

SPLITS = ("train", "val")
SOURCE = (
    "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from "
    "https://www.cityscapes-dataset.com/downloads (free, with an account) in `cityscapes` in the "
    "folder of all data sets, or name that folder with --root"
)
NEEDED = ("polygons.json", "instanceIds.png", "labelIds.png")


def prepare(root: Path, splits: Sequence[str] = SPLITS) -> tuple[int, int]:
    """Writes semantic and panoptic labels.

    Args:
        root: folder of all data sets, which holds ``cityscapes``.
        splits: "train", "val" or both.

    Returns:
        Numbers of ``labelTrainIds`` PNGs and of panoptic PNGs written.

    Raises:
        FileNotFoundError: naming what is missing of the data.
        ModuleNotFoundError: if the package cityscapesscripts is missing.
        ValueError: naming a file that the package cannot convert.
    """
    base = root / "cityscapes"
    stems = {split: _annotations(base, split) for split in splits}  # before any work is done
    semantic = panoptic = 0
    for split in splits:
        semantic += _write_train_ids(stems[split], split)
        panoptic += _write_panoptic(base / "gtFine", stems[split], split)
    return semantic, panoptic


def _annotations(base: Path, split: str) -> list[str]:
    """Paths of a split's annotations, up to and without their last part, e.g. ``polygons.json``."""
    images = base / "leftImg8bit" / split
    for folder in (images, base / "gtFine" / split):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; {SOURCE}")
    stems = []
    for image in sorted(images.glob("*/*_leftImg8bit.png")):
        name = image.name.replace("_leftImg8bit.png", "_gtFine_")
        stem = str(base / "gtFine" / split / image.parent.name / name)
        for part in NEEDED:
            if not Path(stem + part).is_file():
                raise FileNotFoundError(f"no file {stem + part}, which {image} needs; {SOURCE}")
        stems.append(stem)
    if not stems:
        raise FileNotFoundError(f"no picture *_leftImg8bit.png in the cities of {images}; {SOURCE}")
    return stems


def _write_train_ids(stems: list[str], split: str) -> int:
    todo = [
        stem
        for stem in stems
        if not _newer(Path(stem + "labelTrainIds.png"), [Path(stem + "polygons.json")])
    ]
    if not todo:
        return 0
    with _package():
        from cityscapesscripts.preparation.json2labelImg import json2labelImg
    remove_unfinished(Path(stems[0]).parents[1], f"*/*{UNFINISHED}*")
    for stem in tqdm(todo, desc=f"labelTrainIds {split}", unit="file"):
        with whole_file(stem + "labelTrainIds.png") as unfinished:
            try:
                json2labelImg(stem + "polygons.json", str(unfinished), "trainIds")
            except SystemExit as error:  # so the package ends on a label that it does not know
                raise ValueError(
                    f"{stem}polygons.json holds a label Cityscapes does not have"
                ) from error
    return len(todo)


def _write_panoptic(annotations: Path, stems: list[str], split: str) -> int:
    name = f"cityscapes_panoptic_{split}"
    target, target_json = annotations / name, annotations / f"{name}.json"
    sources = [Path(stem + "instanceIds.png") for stem in stems]
    if _newer(target_json, sources) and len(list(target.glob("*.png"))) == len(stems):
        return 0
    with _package():
        from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
    target_json.unlink(missing_ok=True)  # it says that all is there
    with whole_file(target_json) as unfinished, whole_folder(target) as fresh:
        bar = tqdm(total=len(stems), desc=f"panoptic {split}", unit="file")
        with bar, contextlib.redirect_stdout(_Progress(bar)):
            convert2panoptic(str(annotations), str(fresh), setNames=[split])
        (fresh / target_json.name).replace(unfinished)
        for png in (fresh / name).iterdir():
            png.replace(fresh / png.name)
        (fresh / name).rmdir()
    return len(stems)


def _newer(target: Path, sources: list[Path]) -> bool:
    """Whether a file is there and was written after those that it was made from."""
    if not target.is_file():
        return False
    written = target.stat().st_mtime_ns
    return all(source.stat().st_mtime_ns <= written for source in sources)


class _Progress(io.TextIOBase):
    """Turns what the package prints after each file into a bar with the time left."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def write(self, text: str) -> int:
        if "Progress" in text:
            self.bar.update()
        return len(text)


@contextlib.contextmanager
def _package():
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Cityscapes' own package draws the labels, and {error.name!r} is missing: "
            f"pip install cityscapesscripts",
            name=error.name,
        ) from error


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
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS)
    args = parser.parse_args(arguments)
    semantic, panoptic = prepare(args.root, args.splits)
    print(f"{semantic} labelTrainIds and {panoptic} panoptic PNGs written; the rest was there")


if __name__ == "__main__":
    sys.exit(run_command("prepare_cityscapes.py", main))
