#!/usr/bin/env python3
"""Time and memory, against the published algorithm written out; what a GPU is asked to do.

    python benchmarks/benchmark.py                        # R50-FPN panoptic, some minutes
    python benchmarks/benchmark.py --quick                # a small picture, under a minute
    python benchmarks/benchmark.py --what evaluation      # PQ, AP, mIoU, against Detectron2's
    python benchmarks/benchmark.py --count                # operators and waits, without a GPU
    python benchmarks/benchmark.py --gpu --json gpu.json  # on one GPU, up to 6 minutes

Three sides have the same weights and inputs and take turns in one process on the CPU: the model
with `knet.accel.accelerate`, the plain one, and the reference. A ratio below 1 means that this code
is faster or leaner. Times and ratios are medians over the rounds. With inference, training and
memory measured, the last line is `inference R1 training R2 memory R3`: the time of heads with
post-processing, the time of a training step of neck and heads, and the peak memory of that step,
ours by the reference's.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comparison import HEADS, IMAGE, STEP, compare_memory, compare_times
from counting import count_all
from evaluation_cost import compare_evaluation
from gpu import measure_gpu
from workload import Workload, table

from knet.errors import UserError, run_command
from knet.files import write_json

STAGES = {"inference": [IMAGE, HEADS], "training": [STEP]}
PARTS = (*STAGES, "memory", "evaluation")
DEFAULT_CONFIG = Path(__file__).parents[1] / "configs/coco/panoptic/knet_r50_fpn_1x.yaml"
# a picture, its results, images of a training step, objects in each, rounds
FULL = {"size": [800, 1216], "output_size": [421, 640], "batch": 2, "objects": 15, "repeats": 7}
QUICK = {**FULL, "size": [256, 384], "output_size": [213, 320], "objects": 8, "repeats": 3}
GPU = {**FULL, "size": [800, 1333], "output_size": [480, 640], "batch": 16, "repeats": 12}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what the command line asks for, print it, and return what `--json` writes."""
    arguments = parse(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    work = Workload(
        config_file=str(arguments.config_file), opts=tuple(arguments.opts),
        device="cuda" if arguments.gpu else "cpu", size=tuple(arguments.size),
        output_size=tuple(arguments.output_size), batch=arguments.batch, objects=arguments.objects,
    )  # fmt: skip
    result: dict[str, Any] = {
        "machine": machine(work.device),
        "workload": {**vars(work), "repeats": arguments.repeats},
    }
    for values in result.values():
        print(", ".join(f"{key} {value}" for key, value in values.items()), flush=True)
    if arguments.gpu:
        measure_gpu(work, result, repeats=arguments.repeats, path=arguments.json)
    elif arguments.count:
        counts = count_all(work, images=16, objects=work.objects)
        for name, count in counts.items():
            most = ", ".join(f"{n} {k}" for k, n in count.operators.most_common(8))
            print(f"{name:<16} {count}: {most}; waits {dict(count.waits)}")
            result[name] = {"operators": dict(count.operators), "waits": dict(count.waits)}
        print(f"\nimage {counts['image']}, step {counts['step']}")
    else:
        compare(arguments, work, result)
    if arguments.json:
        write_json(arguments.json, result, indent=1)
    return result


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the sizes that `--quick` and `--gpu` imply."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pair = {"type": int, "nargs": 2, "metavar": ("HEIGHT", "WIDTH")}
    parser.add_argument("--config-file", type=Path, default=DEFAULT_CONFIG)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="a small picture, few rounds")
    mode.add_argument("--count", action="store_true", help="operators and waits, no times")
    mode.add_argument("--gpu", action="store_true", help="on one GPU, in place of all else")
    parser.add_argument("--what", default="inference,training,memory", help=",".join(PARTS))
    parser.add_argument("--size", **pair, help="of the picture; default 800 1216")
    parser.add_argument("--output-size", **pair, help="of the results; default 421 640")
    parser.add_argument("--large-output", **pair, default=[3000, 4000], help="memory alone")
    parser.add_argument("--batch", type=int, help="images of a training step; default 2")
    parser.add_argument("--objects", type=int, help="in each of them; default 15")
    parser.add_argument("--repeats", type=int, help="rounds that count; default 7")
    parser.add_argument("--images", type=int, nargs=2, default=[100, 400], help="of evaluations")
    parser.add_argument("--threads", type=int, help="of torch; default its own choice")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    arguments = parser.parse_args(argv)
    for key, value in (QUICK if arguments.quick else GPU if arguments.gpu else FULL).items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, value)
    arguments.what = arguments.what.split(",")
    unknown = set(arguments.what) - set(PARTS)
    if unknown:
        parser.error(f"--what: {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    if min(arguments.repeats, arguments.batch, arguments.objects) < 1:
        parser.error("--repeats, --batch and --objects must be at least 1")
    if arguments.gpu and not torch.cuda.is_available():
        raise UserError("--gpu: torch finds no GPU; --count counts without one")
    return arguments


def machine(device: str) -> dict[str, Any]:
    """Processor, threads and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = torch.cuda.get_device_name() if device == "cuda" else [*names, platform.machine()][0]
    return {"processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version()}  # fmt: skip


def compare(arguments: argparse.Namespace, work: Workload, result: dict[str, Any]) -> None:
    """Measure the parts asked for, print them, and add them to `result`."""
    parts = set(arguments.what)
    stages = [stage for part, names in STAGES.items() if part in parts for stage in names]
    if stages:
        result["times"], near = compare_times(work, stages, arguments.repeats)
        print("\n" + ", ".join(f"{key} {value:.6g}" for key, value in near.items()))
        print("\n" + table(result["times"]), flush=True)
        result.update(near)
    if "memory" in parts:
        large = None if arguments.quick else arguments.large_output
        result["memory"] = compare_memory(work, large, 1 if arguments.quick else 3)
        print("\n" + table(result["memory"]), flush=True)
    if "evaluation" in parts:
        result["evaluation"] = compare_evaluation(arguments.images)
        print("\n" + table(result["evaluation"]))
    if {"inference", "training", "memory"} <= parts:
        times = {row[""]: row["accelerated / reference"] for row in result["times"]}
        memory = {row[""]: row["ours / reference"] for row in result["memory"]}
        print(
            f"\ninference {times[HEADS]:.2f} training {times[STEP]:.2f} "
            f"memory {memory[f'memory of {STEP}']:.2f}"
        )


if __name__ == "__main__":

    def command() -> None:
        main()

    sys.exit(run_command("benchmark.py", command))
