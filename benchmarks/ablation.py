#!/usr/bin/env python3
"""What each idea is worth: trainings of the same time, on three data sets, with several seeds.

    python benchmarks/ablation.py [--data scenes nuclei photos] [--variants today ...]
    python benchmarks/ablation.py --page

Every finished training is a line of the table, by which a second call goes on where the first one
stopped; `--page` puts its tables into docs/ABLATION.md. Data: the scenes are drawn;
`dsb2018_nuclei` and `coco_panoptic200` are looked for below DETECTRON2_DATASETS.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ablation_plan import NUCLEI, PHOTOS, SCENES, SCORES, VARIANTS, find_variant
from ablation_run import Run, run
from ablation_table import append_row, known_times, read_rows, with_tables

from knet.files import write_text

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "ablation.jsonl"
PAGE = ROOT / "docs" / "ABLATION.md"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [variant.name for variant in VARIANTS]
    data = [SCENES, NUCLEI, PHOTOS]
    parser.add_argument("--data", nargs="+", default=data, choices=data)
    parser.add_argument("--variants", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--length", type=float, default=1.0, help="times STEPS of ablation_plan.py (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of each training (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (%(default)s)")
    parser.add_argument("--table", type=Path, default=TABLE, help="lines of JSON, appended to")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "ablation")
    parser.add_argument("--page", action="store_true", help=f"tables of {PAGE.relative_to(ROOT)}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the table lacks, or make the page."""
    args = parse(arguments)
    args.output = args.output.resolve()  # paths of data sets count from another folder
    if args.page:
        text = PAGE.read_text(encoding="utf-8")
        write_text(PAGE, with_tables(text, read_rows(args.table), VARIANTS))
        return
    jobs = missing_jobs(args, read_rows(args.table))
    print(f"{len(jobs)} to go")
    # those that need the weights of others come last
    shared = [job for job in jobs if find_variant(job.variant).trained_as is not None]
    own = [job for job in jobs if job not in shared]
    failed = run_all(own, args) + run_all(shared, args)
    if failed:
        sys.exit(f"{failed} failed; the same command tries them again")


def run_all(jobs: Sequence[Run], args: argparse.Namespace) -> int:
    """Run jobs and append their rows; returns how many failed."""
    now, start, failed = commit(), time.monotonic(), 0
    # a fresh process each, whose memory nothing else has used
    with ProcessPoolExecutor(
        args.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        running = {pool.submit(train, job, args.table, args.output): job for job in jobs}
        for done, future in enumerate(as_completed(running), start=1):
            job = running[future]
            what = f"[{done}/{len(jobs)}] {job.data}, {job.variant}, seed {job.seed}"
            if future.exception() is not None:
                failed += 1
                print(f"{what}: failed: {future.exception()!r}", file=sys.stderr, flush=True)
                continue
            row = {**future.result(), "commit": now}
            append_row(args.table, row)
            left = (time.monotonic() - start) / done * (len(jobs) - done) / 60
            score = row["scores"][SCORES[job.data]]
            print(f"{what}: {score:.1f}; {left:.0f} minutes left", flush=True)
    return failed


def train(job: Run, table: Path, folder: Path) -> dict[str, Any]:
    """A row, see `ablation_run.run`, as long as that of a seed that is there already."""
    times = known_times(read_rows(table), job.data, job.variant, job.length, job.threads)
    return run(job, find_variant(job.variant), folder, times=times)


def missing_jobs(args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> list[Run]:
    """What is asked for and has no row."""
    keys = ("data", "variant", "seed", "length", "threads")
    known = {tuple(row[key] for key in keys) for row in rows}
    wanted = [
        Run(data, name, seed, args.length, args.threads)
        for seed in args.seeds
        for name in args.variants
        for data in args.data
        if data in find_variant(name).data
    ]
    return [job for job in wanted if tuple(getattr(job, key) for key in keys) not in known]


def commit() -> str:
    """What is measured, as git calls it."""
    shown = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return shown.stdout.strip()


if __name__ == "__main__":
    main()
