"""Read every picture and label of a data set once; report what is in it and what is wrong.

    python tools/check_dataset.py --config-file configs/shapes/panoptic.yaml
    python tools/check_dataset.py --config-file my.yaml --split train --draw 8 --output sheets
    python tools/check_dataset.py --dataset shapes_val_instance --json report.json

Exit status: 0 without errors (warnings may be there), 1 with errors, 2 if the call is wrong.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import knet  # noqa: F401  (registers the model; has to come before detectron2)

# isort: split
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from knet.config import get_cfg_from_file
from knet.data.check.data_set import add_config_defects, check_dataset
from knet.data.check.report import DatasetReport, format_report
from knet.data.custom import register_builtin, register_custom
from knet.data.defects import DataError
from knet.data.images import MAX_PIXELS, save_image
from knet.errors import UserError, run_command
from knet.files import write_json
from knet.visualization import draw_annotations

_CHUNK = 8  # records that are waited for before the time left is said


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse arguments, check and report; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what cannot be printed
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    args = parser.parse_intermixed_args(arguments)
    if not args.config_file and not args.dataset:
        parser.error("name a --config-file or a --dataset")
    if args.workers < 0:
        parser.error(f"--workers is {args.workers}; it must be 0 or more")
    if args.opts and not args.config_file:
        parser.error(f"{args.opts[0]}: keys and values need a --config-file")
    return run_command("check_dataset.py", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise UserError(f"--json {args.json}: there is no such folder; make it first")
    if args.json and Path(args.json).is_dir():
        raise UserError(f"--json {args.json}: this is a folder; name a file in it")
    logger = logging.getLogger("knet")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the report says what the log would
    try:
        cfg = get_cfg_from_file(args.config_file, args.opts) if args.config_file else None
        names = args.dataset or _names(cfg, args.split)
        if not names:
            raise UserError(f"the config names no data set for --split {args.split}")
        reports = [_check(name, cfg, args.workers) for name in names]
        if cfg is not None:
            add_config_defects(reports, cfg)
    finally:
        logger.setLevel(level)
    kernels = cfg.MODEL.KNET.NUM_KERNELS if cfg is not None else None
    for report in reports:
        print(format_report(report, num_kernels=kernels, show_all=args.all_defects), end="\n\n")
        if args.draw:
            for path in _draw(report, args.draw, Path(args.output), _max_pixels(cfg)):
                print(path)
    if args.json:
        content = [report.as_dict() for report in reports]
        write_json(args.json, content, indent=1)
    return int(any(report.num_errors for report in reports))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", help="its data sets, those of DATASETS.CUSTOM too")
    parser.add_argument(
        "--split", choices=["train", "test", "all"], default="all", help="of the config's data sets"
    )
    parser.add_argument(
        "--dataset",
        nargs="+",
        metavar="NAME",
        help="names of registered data sets, in place of the config's: of its DATASETS.CUSTOM, "
        "this project's or Detectron2's",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; 0 for this one only"
    )
    parser.add_argument(
        "--all-defects", action="store_true", help="show every defect, not ten of a kind"
    )
    parser.add_argument(
        "--draw",
        type=int,
        default=0,
        metavar="N",
        help="draw the labels of N usable records, evenly spread, over their pictures",
    )
    parser.add_argument(
        "--output", default="sheets", help="folder for the drawings of usable records"
    )
    parser.add_argument("--json", metavar="FILE", help="write the reports there too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys and values")
    return parser


def _names(cfg: CfgNode, split: str) -> list[str]:
    """The config's data sets of a split, each once."""
    train = cfg.DATASETS.TRAIN if split in ("train", "all") else ()
    test = cfg.DATASETS.TEST if split in ("test", "all") else ()
    return list(dict.fromkeys([*train, *test]))


def _check(name: str, cfg: CfgNode | None, workers: int) -> DatasetReport:
    """Registers one data set and checks it; a file that cannot be read at all is a report too."""
    try:
        if cfg is not None:
            only = cfg.clone()
            only.defrost()
            only.DATASETS.CUSTOM = [e for e in cfg.DATASETS.CUSTOM if _name(e) in (name, None)]
            only.DATASETS.TEST = ()
            only.DATASETS.ON_ERROR = "skip"  # all defects are wanted, not the first
            register_custom(only)
        register_builtin([name])
    except DataError as error:
        if not error.defects:
            raise
        return DatasetReport(name, defects=error.defects)
    if name not in DatasetCatalog:
        raise UserError(
            f"no data set {name!r}: it is not in the config's DATASETS.CUSTOM, and neither this "
            f"project nor Detectron2 has one of this name"
        )
    return check_dataset(
        name, workers=workers, progress=_progress(name), max_pixels=_max_pixels(cfg)
    )


def _max_pixels(cfg: CfgNode | None) -> int:
    return MAX_PIXELS if cfg is None else cfg.INPUT.MAX_PIXELS


def _name(entry: object) -> object:
    return entry.get("NAME") if isinstance(entry, dict) else None


def _progress(name: str) -> Callable[[int, int], None]:
    """Writes records read and the time left to stderr, twice a second at most."""
    last = time.monotonic()
    begun = 0.0  # when the first record came: what it took to start says nothing of the rest
    terminal = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        nonlocal begun, last
        now = time.monotonic()
        if done == 1:
            begun = now
        if now - last < (0.5 if terminal else 10) and not (terminal and done == total):
            return
        last = now
        text = f"{name}: {done} of {total} records"
        if done > _CHUNK:  # the first ones come at once
            text += f", {(now - begun) / (done - 1) * (total - done):.0f} s left"
        print(f"\r{text:<78}" if terminal else text, end="" if terminal else "\n", file=sys.stderr)
        if terminal and done == total:
            print(file=sys.stderr)

    return show


def _draw(report: DatasetReport, number: int, folder: Path, max_pixels: int) -> list[str]:
    """Sheets of usable records, evenly spread over the data set."""
    records = report.usable
    number = min(number, len(records))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in (k * len(records) // number for k in range(number)):
        metadata = MetadataCatalog.get(report.name)
        sheet = draw_annotations(records[index], metadata, max_pixels=max_pixels)
        stem = f"{report.name}_{index:06d}_{Path(records[index]['file_name']).stem}"
        paths.append(str(folder / f"{stem}.png"))
        save_image(paths[-1], sheet)
    return paths


if __name__ == "__main__":
    sys.exit(main())
