#!/usr/bin/env python3
"""Time and peak memory, against the published algorithm written out and the machine's limit.

    python tools/benchmark.py                      # R50-FPN panoptic at 800x1216, some minutes
    python tools/benchmark.py --quick              # ratios of a small picture, under 45 seconds
    python tools/benchmark.py --config-file configs/coco/instance/knet_r50_fpn_1x.yaml \\
        --size 800 1344 --device cuda --dtype bfloat16 --json result.json

Both sides have the same weights and inputs and take turns in one process. A ratio below 1 means
that this code is faster or leaner. Every time is a median with its quartiles; a ratio is the
median over the rounds. "Their time" is what the matrix products and convolutions of a stage would
take at the rate that a large float32 matrix product reaches on this machine, measured between the
rounds. With inference, training and memory measured, the last line is
`inference R1 training R2 memory R3`: the time of heads with post-processing, the time of a
training step of neck and heads, and the peak memory of that step, ours by the reference's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import benchmark_report as report
import torch
from benchmark_count import count_all
from benchmark_inputs import Workload, compiled_material, make_material
from benchmark_laps import Laps, ProductRate, alternate, products, seconds, synchronise
from benchmark_memory import measure_memory
from benchmark_ours import Ours
from benchmark_reference import Reference
from benchmark_sides import Side, agreement, losses_differ

from knet.errors import UserError, run_command
from knet.files import write_json

PARTS = ("inference", "training", "memory")
DEFAULT_CONFIG = Path(__file__).parents[1] / "configs/coco/panoptic/knet_r50_fpn_1x.yaml"
# a picture, its results, objects in it, rounds
QUICK = {"size": [256, 384], "output_size": [213, 320], "objects": 8, "repeats": 3}
FULL = {"size": [800, 1216], "output_size": [421, 640], "objects": 15, "repeats": 7}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what the command line asks for, print it, and return what `--json` writes."""
    arguments = parse(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    work = Workload(
        config_file=str(arguments.config_file),
        opts=arguments.opts,
        device=arguments.device,
        dtype=arguments.dtype,
        size=tuple(arguments.size),
        output_size=tuple(arguments.output_size),
        batch=arguments.batch,
        objects=arguments.objects,
    )
    result: dict[str, Any] = {
        "machine": report.machine(work.device, work.dtype),
        "workload": {**vars(work), "opts": list(work.opts)},
        "repeats": arguments.repeats,
    }
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    print(
        f"{Path(work.config_file).name}, picture {work.size[0]}x{work.size[1]}, results "
        f"{work.output_size[0]}x{work.output_size[1]}, {arguments.repeats} rounds"
    )
    if arguments.count:
        return _count(arguments, work, result)
    if {"inference", "training"} & set(arguments.what):
        _measure_times(arguments, work, result)
    if "memory" in arguments.what:
        large = None if arguments.quick else arguments.large_output
        found = measure_memory(work, large_output=large, repeats=1 if arguments.quick else 3)
        result["memory"] = report.memory_rows(found)
        print("\n" + report.format_memory(result["memory"]))
    if arguments.json:
        write_json(arguments.json, result, indent=1)
    if set(PARTS) <= set(arguments.what):
        print("\n" + summary(result))
    return result


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the sizes that `--quick` implies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pair = {"type": int, "nargs": 2, "metavar": ("HEIGHT", "WIDTH")}
    parser.add_argument("--config-file", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument("--quick", action="store_true", help="a small picture, few rounds")
    parser.add_argument("--size", **pair, help="of the picture; default 800 1216")
    parser.add_argument("--output-size", **pair, help="of the results; default 421 640")
    parser.add_argument("--large-output", **pair, default=[3000, 4000], help="memory alone")
    parser.add_argument("--batch", type=int, default=2, help="images of a training step")
    parser.add_argument("--objects", type=int, help="in each of them; default 15")
    parser.add_argument("--repeats", type=int, help="rounds that count; default 7")
    parser.add_argument(
        "--what", type=lambda text: text.split(","), default=list(PARTS), help=",".join(PARTS)
    )
    parser.add_argument(
        "--count",
        action="store_true",
        help="operators and waits on the path of a GPU, in place of times",
    )
    parser.add_argument("--compile", action="store_true", help="time the compiled model too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, help="of torch; default its own choice")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    arguments = parser.parse_args(argv)
    for key, value in (QUICK if arguments.quick else FULL).items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, value)
    unknown = set(arguments.what) - set(PARTS)
    if unknown:
        parser.error(f"--what: {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU")
    if min(arguments.repeats, arguments.batch, arguments.objects) < 1:
        parser.error("--repeats, --batch and --objects must be at least 1")
    return arguments


def _count(arguments: argparse.Namespace, work: Workload, result: dict[str, Any]) -> dict[str, Any]:
    counts = count_all(work, images=16, objects=arguments.objects)
    for name, count in counts.items():
        most = ", ".join(f"{n} {k}" for k, n in count.operators.most_common(8))
        print(f"{name:<16} {count}: {most}; waits {dict(count.waits)}")
        result[name] = {"operators": dict(count.operators), "waits": dict(count.waits)}
    if arguments.json:
        write_json(arguments.json, result, indent=1)
    print(f"\nimage {counts['image']}, step {counts['step']}")
    return result


def _measure_times(arguments: argparse.Namespace, work: Workload, result: dict[str, Any]) -> None:
    material = make_material(work)
    sides: list[Side] = [Ours(material, work), Reference(material, work)]
    size = 1024 if arguments.quick else 2048
    rate = ProductRate(work.device, size * (4 if work.device == "cuda" else 1))
    measured = {}
    if "inference" in arguments.what:
        ours, theirs = (side.inference(Laps()) for side in sides)
        result["same_pixels"] = agreement(ours, theirs)
        count = len(theirs[1]) if material.panoptic else len(theirs[0])
        kind = "segments" if material.panoptic else "instances"
        print(f"results: {count} {kind}, {result['same_pixels']:.4%} of their pixels equal")
        compiled = Ours(compiled_material(material), work) if arguments.compile else None
        measured["inference"] = _alternate_inference(sides, compiled, arguments.repeats, rate)
    if "training" in arguments.what:
        ours, theirs = (side.training(Laps()) for side in sides)
        result["losses_differ"] = losses_differ(ours, theirs)
        print(f"losses: relative difference up to {result['losses_differ']:.1e}")
        measured["training"] = _alternate_training(sides, arguments.repeats, rate)
    result["product_gflops"] = report.quartiles(rate.rates)[1] / 1e9
    print(f"float32 matrix product: {result['product_gflops']:.0f} GFLOP/s")
    for part, (rounds, counts) in measured.items():
        result[part] = report.time_rows(
            *rounds, products=counts, rate=result["product_gflops"] * 1e9
        )
        print("\n" + report.format_times(part, result[part]))


def _alternate_inference(
    sides: Sequence[Side], compiled: Side | None, repeats: int, rate: ProductRate
) -> tuple[list, dict[str, dict[str, float]]]:
    """Seconds of every stage in every round, and the products of each side."""
    device, output_size = sides[0].work.device, sides[0].work.output_size

    def whole(side: Side) -> float:
        synchronise(device)
        start = time.perf_counter()
        side.whole(output_size)
        synchronise(device)
        return time.perf_counter() - start

    def infer(side: Side) -> dict[str, float]:
        laps = seconds(device)
        side.inference(laps)
        figures = {**laps.stages, "whole": whole(side)}
        if compiled is not None:
            figures["whole, compiled"] = (
                whole(compiled) if side.name == "ours" else figures["whole"]
            )
        return figures

    counts = {side.name: products(side.inference) for side in sides}
    for stages in counts.values():
        stages["whole"] = stages["whole, compiled"] = sum(stages.values())
    return alternate([partial(infer, side) for side in sides], repeats, rate), counts


def _alternate_training(
    sides: Sequence[Side], repeats: int, rate: ProductRate
) -> tuple[list, dict[str, dict[str, float]]]:
    """Seconds of every stage in every round, and the products of each side."""

    def train(side: Side) -> dict[str, float]:
        laps = seconds(side.work.device)
        side.training(laps)
        side.end_training()
        return laps.stages

    counts = {side.name: products(side.training) for side in sides}
    return alternate([partial(train, side) for side in sides], repeats, rate), counts


def summary(result: dict[str, Any]) -> str:
    """The three ratios of the last line."""
    ratios = {row["stage"]: row["ratio"] for row in [*result["inference"], *result["training"]]}
    memory = {row["part"]: row["ratio"] for row in result["memory"]}
    return (
        f"inference {ratios['heads + post-processing']:.2f} training {ratios['step']:.2f} "
        f"memory {memory['training step']:.2f}"
    )


if __name__ == "__main__":

    def command() -> None:
        main()

    sys.exit(run_command("benchmark.py", command))
