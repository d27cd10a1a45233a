#!/usr/bin/env python3
"""Operations, activations, parameters and structure of a model.

    python tools/analyze_model.py --config-file configs/coco/panoptic/knet_r50_fpn_1x.yaml \\
        --tasks flop activation parameter structure --size 800 1216
    python tools/analyze_model.py --config-file configs/shapes/panoptic.yaml \\
        --tasks flop --num-inputs 20

Without `--size` and `--use-fixed-input-size`, inputs come from the test data set; where its files
are missing, this says so and takes random images of the config's test size. Results have the size
of the image. Weights are random unless MODEL.WEIGHTS is given here.

Operations are counted as fvcore does: a multiplication with its addition is one. Counters of single
operations, such as torch's, give twice the number for convolutions and matrix products.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import knet  # noqa: F401  (registers the model; has to come before detectron2)

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import flop_count_table, parameter_count, parameter_count_table
from torch import nn

from knet.analysis import Count, activation_analysis, flop_analysis
from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.config import get_cfg_from_file
from knet.data.custom import register_builtin, register_custom
from knet.errors import UserError, run_command
from knet.training.trainer import Trainer

TASKS = ("flop", "activation", "parameter", "structure")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print what the command line asks for; returns the totals of each task."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    if args.num_inputs < 1 or (args.size and min(args.size) < 1):
        parser.error("--num-inputs and --size must be at least 1")
    cfg = get_cfg_from_file(args.config_file, args.opts)
    register_builtin([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    register_custom(cfg)
    model = build_model(cfg).eval()
    if "MODEL.WEIGHTS" in args.opts:
        KNetCheckpointer.from_config(cfg, model, strict=True).load(cfg.MODEL.WEIGHTS)
    records: list[dict[str, Any]] = []
    if {"flop", "activation"} & set(args.tasks):
        records = list(itertools.islice(_records(cfg, args), args.num_inputs))
    found: dict[str, Any] = {}
    for task in args.tasks:
        print(f"\n{task}\n{'=' * len(task)}")
        if task == "flop":
            found[task] = _report_flops(model, records)
        elif task == "activation":
            found[task] = _report_activations(model, records)
        elif task == "parameter":
            print(parameter_count_table(model, max_depth=5))
            found[task] = parameter_count(model)[""]
            print(f"total: {found[task]:,} parameters")
        else:
            found[task] = str(model)
            print(found[task])
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--tasks", choices=TASKS, nargs="+", required=True)
    parser.add_argument(
        "-n", "--num-inputs", type=int, default=1, help="images to count and average; default 1"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="random images of this size"
    )
    parser.add_argument(
        "--use-fixed-input-size",
        action="store_true",
        help="random images of INPUT.CROP.SIZE, as papers count semantic models",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser


def _records(cfg: CfgNode, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    size = args.size
    if args.use_fixed_input_size and size is None:
        crop = cfg.INPUT.CROP
        if not crop.ENABLED or crop.TYPE != "absolute":
            raise UserError(
                "--use-fixed-input-size: the config has no absolute INPUT.CROP; use --size"
            )
        size = crop.SIZE
    if size is None and cfg.DATASETS.TEST:
        try:
            loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
        except FileNotFoundError as error:
            print(f"{cfg.DATASETS.TEST[0]} is not here ({error})")
        else:
            print(f"images: of {cfg.DATASETS.TEST[0]}")
            return (batch[0] for batch in loader)
    size = size or (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    if min(size) < 1:
        raise UserError("the config has no size of test images; use --size")
    print(f"images: random, {size[0]}x{size[1]}")
    return _random_records(size, seed=0)


def _random_records(size: Sequence[int], *, seed: int) -> Iterator[dict[str, Any]]:
    height, width = (int(side) for side in size)
    generator = torch.Generator().manual_seed(seed)
    while True:
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        yield {"image": image, "height": height, "width": width}


def _report_flops(model: nn.Module, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = [flop_analysis(model, record) for record in records]
    print("of one image:\n" + flop_count_table(counts[-1].analysis, max_depth=4))
    found = _report_average(counts, unit="GFLOP", scale=1e9)
    found["products"] = statistics.mean(count.products for count in counts)
    print(
        f"convolutions and matrix products: {found['products'] / 1e9:.4g} G multiplications with "
        f"additions, {2 * found['products'] / 1e9:.4g} G single operations"
    )
    print(_completeness(found))
    return found


def _report_activations(model: nn.Module, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = [activation_analysis(model, record) for record in records]
    found = _report_average(counts, unit="million activations", scale=1e6)
    print(_completeness(found))
    return found


def _report_average(counts: Sequence[Count], *, unit: str, scale: float) -> dict[str, Any]:
    sums: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    for count in counts:
        sums.update(count.by_operator)
        uncounted.update(count.uncounted)
    by_operator = {name: number / len(counts) for name, number in sums.most_common()}
    print(f"average of {len(counts)} in {unit}:")
    for name, number in by_operator.items():
        print(f"  {name:30s} {number / scale:12.6f}")
    totals = [count.total for count in counts]
    mean, spread = statistics.mean(totals), statistics.pstdev(totals)
    print(f"total: {mean / scale:.4g} ± {spread / scale:.2g} {unit}")
    return {"total": mean, "by_operator": by_operator, "uncounted": dict(uncounted)}


def _completeness(found: Mapping[str, Any]) -> str:
    if not found["uncounted"]:
        return "complete: every operator is counted, but for free ones (knet.analysis)"
    names = ", ".join(f"{name} ({times})" for name, times in sorted(found["uncounted"].items()))
    return f"incomplete: not counted are {names}"


if __name__ == "__main__":

    def command() -> None:
        main()

    sys.exit(run_command("analyze_model.py", command))
