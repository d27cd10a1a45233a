"""Read every picture and label of a data set once; report what is in it and what is wrong.

    knet check --config-file configs/shapes/panoptic.yaml
    knet check --config-file my.yaml --part train --draw 8 --output sheets
    knet check --data photos
    knet check --data annotations.json --image-root images --fix fixed.json --split 0.2

The last form mends what is mechanical in a COCO file of instances, into new files, and checks
those: empty heading classes, wrong areas and boxes, names without their folder, what comes twice.
Exit status: 0 without errors (warnings may be there), 1 with errors, 2 if the call is wrong.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from knet.cli.parser import Parser
from knet.config import add_knet_config, get_cfg_from_file
from knet.config_file import inference_kernels
from knet.data.check.report import format_report
from knet.data.check.run import check_data, draw_records, max_pixels
from knet.data.fix import fix
from knet.data.formats import recognise
from knet.data.progress import show_progress
from knet.errors import UserError
from knet.files import write_json
from knet.visualization import TASKS


def add_arguments(parser: Parser) -> None:
    """The flags."""
    parser.add_argument(
        "--config-file", metavar="FILE", help="its data sets, those of DATASETS.CUSTOM too"
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="pictures and labels, whose format is recognised; or a COCO JSON of instances",
    )
    parser.add_argument(
        "--image-root", metavar="FOLDER", help="with --data FILE: its pictures (the file's folder)"
    )
    parser.add_argument(
        "--fix", metavar="OUT.json", help="with --data FILE: write it anew, mended, and check that"
    )
    parser.add_argument(
        "--split",
        type=float,
        metavar="SHARE",
        help="with --fix: write two files, this share of the pictures for validation",
    )
    parser.add_argument("--val", metavar="FOLDER", help="with --data: its validation part")
    parser.add_argument("--task", choices=list(TASKS), help="with --data: what it is for")
    parser.add_argument(
        "--part", choices=["train", "test", "all"], default="all", help="of the data sets"
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
        "--output",
        default="sheets",
        metavar="FOLDER",
        help="for the drawings, and with --data for annotations that are derived (%(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the reports there too")


def run(args: argparse.Namespace) -> int:
    """Check and report; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what cannot be printed
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not args.config_file and not args.dataset and not args.data:
        raise UserError("name a --config-file, a --data folder or a --dataset")
    if args.data and (args.config_file or args.dataset):
        raise UserError("--data is checked by itself: leave --config-file and --dataset out")
    is_file = args.data is not None and Path(args.data).is_file()
    if (args.val or args.task) and (is_file or not args.data):
        raise UserError("--val and --task go with a --data folder")
    if (args.image_root or args.fix) and not is_file:
        raise UserError("--image-root and --fix go with --data FILE, a COCO JSON of instances")
    if args.split is not None and not args.fix:
        raise UserError("--split goes with --fix; --part chooses among a config's data sets")
    if args.workers < 0:
        raise UserError(f"--workers is {args.workers}; it must be 0 or more")
    if args.opts and not args.config_file:
        raise UserError(f"{args.opts[0]}: keys and values need a --config-file")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise UserError(f"--json {args.json}: there is no such folder; make it first")
    if args.json and Path(args.json).is_dir():
        raise UserError(f"--json {args.json}: this is a folder; name a file in it")
    cfg = _config(args)
    model = args.config_file is not None  # a folder has none yet
    reports = check_data(
        cfg,
        names=args.dataset,
        part=args.part,
        model=model,
        workers=args.workers,
        progress=show_progress,
    )
    kernels = inference_kernels(cfg)[1] if cfg is not None and model else None
    limit = max_pixels(cfg)
    for report in reports:
        print(format_report(report, num_kernels=kernels, show_all=args.all_defects), end="\n\n")
        if args.draw:
            for path in draw_records(report, args.draw, args.output, max_pixels=limit):
                print(path)
    if args.json:
        write_json(args.json, [report.as_dict() for report in reports], indent=1)
    return int(any(report.num_errors for report in reports))


def _config(args: argparse.Namespace) -> CfgNode | None:
    if args.config_file:
        return get_cfg_from_file(args.config_file, args.opts)
    if not args.data:
        return None
    cfg = get_cfg()
    add_knet_config(cfg)
    if Path(args.data).is_file():
        entries = _coco_entries(args)
    else:
        prepared = recognise(args.data, val=args.val, task=args.task).prepare(args.output)
        print("\n".join(prepared.notes), end="\n\n")
        entries = [prepared.train, prepared.val]
    cfg.DATASETS.CUSTOM = entries
    train, *val = (entry["NAME"] for entry in entries)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), tuple(val)
    return cfg


def _coco_entries(args: argparse.Namespace) -> list[dict[str, str]]:
    """Entries of a COCO file, or of those that it is mended into."""
    root = args.image_root or os.path.dirname(args.data)
    files = [Path(args.data)]
    if args.fix:
        fixed = fix(args.data, args.fix, image_root=root, split=args.split)
        print("\n".join([f"{args.data}:", *(f"  {text}" for text in fixed.changes)]))
        print(f"-> {', '.join(map(str, fixed.files))}", end="\n\n")
        files = fixed.files
    return [
        {
            "NAME": file.stem,
            "FORMAT": "coco_instances",
            "IMAGE_ROOT": os.path.abspath(root),
            "JSON_FILE": os.path.abspath(file),
        }
        for file in files
    ]
