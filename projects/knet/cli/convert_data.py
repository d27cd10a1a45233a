"""Write data sets as tar shards, WebDataset's layout: few large files in place of many small ones.

    knet convert-data --data photos --output shards
    knet convert-data --config-file my.yaml --part train --shard-size 500 --output shards

Each data set comes to a folder of its name, for an entry of DATASETS.CUSTOM with FORMAT shards.
Pictures and label PNGs keep their bytes. Annotations with an error are refused; `knet check` lists
them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from knet.cli.parser import Parser, show_news
from knet.config import add_knet_config, get_cfg_from_file
from knet.data.custom import register_data_sets, require_registered
from knet.data.formats import recognise
from knet.data.write_shards import write_shards
from knet.errors import UserError
from knet.visualization import TASKS


def add_arguments(parser: Parser) -> None:
    """The flags."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--config-file", metavar="FILE", help="its data sets, those of DATASETS.CUSTOM too"
    )
    which.add_argument(
        "--data", metavar="FOLDER", help="pictures and labels, whose format is recognised"
    )
    parser.add_argument("--val", metavar="FOLDER", help="with --data: its validation part")
    parser.add_argument("--task", choices=list(TASKS), help="with --data: what it is for")
    parser.add_argument(
        "--part", choices=["train", "test", "all"], default="all", help="of the data sets"
    )
    parser.add_argument(
        "--dataset", nargs="+", metavar="NAME", help="in place of the config's TRAIN and TEST"
    )
    parser.add_argument(
        "--shard-size", type=int, default=1000, metavar="MB", help="of a shard (%(default)s)"
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="for the folders")


def run(args: argparse.Namespace) -> None:
    """Write them."""
    if (args.val or args.task) and not args.data:
        raise UserError("--val and --task go with a --data folder")
    if args.shard_size < 1:
        raise UserError(f"--shard-size is {args.shard_size}; it must be 1 or more")
    if args.opts and not args.config_file:
        raise UserError(f"{args.opts[0]}: keys and values need a --config-file")
    show_news()
    cfg = _config(args)
    train = cfg.DATASETS.TRAIN if args.part in ("train", "all") else ()
    test = cfg.DATASETS.TEST if args.part in ("test", "all") else ()
    names = list(dict.fromkeys(args.dataset or (*train, *test)))
    if not names:
        raise UserError(f"the config names no data set for --part {args.part}")
    register_data_sets(cfg, names)
    for name in names:
        require_registered(name)
        folder = Path(args.output, name.replace("/", "_"))
        shards = write_shards(name, folder, shard_bytes=args.shard_size * 10**6)
        entry = {"NAME": name, "FORMAT": "shards", "SHARD_ROOT": str(folder.resolve())}
        print(f"{len(shards)} shards in {folder}: DATASETS.CUSTOM takes {entry}")


def _config(args: argparse.Namespace) -> CfgNode:
    if args.config_file:
        return get_cfg_from_file(args.config_file, args.opts)
    cfg = get_cfg()
    add_knet_config(cfg)
    found = recognise(args.data, val=args.val, task=args.task)
    prepared = found.prepare(Path(args.output, "annotations"))
    print("\n".join(prepared.notes), end="\n\n")
    cfg.DATASETS.CUSTOM = [prepared.train, prepared.val]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (prepared.train["NAME"],), (prepared.val["NAME"],)
    cfg.OUTPUT_DIR = args.output
    return cfg
