"""Damaged inputs through every door of the project, and what came of them.

    python tests/fuzz/driver.py --cases 2000 --seed 0
    python tests/fuzz/driver.py --only yaml --show 20
    python tests/fuzz/driver.py --only yaml --case 17     # in this process, with the stack trace

An input is refused with a name (of its file or config key), or accepted; all else is a defect: an
error without a name, a crash, a hang, more than 2 GB, and weights that load with other values than
were saved.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import doors
from pool import OUTCOMES, Result, run_cases

__all__ = ["BAD", "run_door"]

BAD = ("unnamed", "crash", "hang", "memory", "silent")


def run_door(door: doors.Door, count: int, *, seed: int, processes: int = 2) -> Iterator[Result]:
    """The first cases of a door."""
    return run_cases(
        door.name, range(count), lambda number: door.run(seed, number), processes=processes
    )


def main() -> int:
    """Parse arguments and run; returns 1 if there was a defect."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000, help="of all doors together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(doors.DOORS), nargs="+", help="doors")
    parser.add_argument("--case", type=int, help="one case of --only, in this process")
    parser.add_argument("--show", type=int, default=3, help="defects of a door that are printed")
    parser.add_argument("--processes", type=int, default=max(os.cpu_count() or 1, 2))
    args = parser.parse_args()
    names = args.only or list(doors.DOORS)
    with tempfile.TemporaryDirectory() as folder:
        base = doors.Base(Path(folder))
        if args.case is not None:
            door = doors.DOORS[names[0]](base)
            try:
                print(*door.run(args.seed, args.case, raising=True))
            except Exception:
                traceback.print_exc()
            return 0
        return _table(base, names, args)


def _table(base: doors.Base, names: list[str], args: argparse.Namespace) -> int:
    print(f"{'door':<16}{'cases':>7}" + "".join(f"{o:>10}" for o in OUTCOMES) + f"{'s':>7}")
    sums: Counter[str] = Counter()
    shares = doors.shares(args.cases, names)
    for name, count in shares.items():
        begun = time.monotonic()
        results = list(
            run_door(doors.DOORS[name](base), count, seed=args.seed, processes=args.processes)
        )
        found = Counter(result.outcome for result in results)
        sums.update(found)
        _row(name, len(results), found, time.monotonic() - begun)
        bad = [result for result in results if result.outcome in BAD]
        for result in bad[: args.show]:
            print(f"    {result.number}: {result.outcome}: {' '.join(result.what.split())[:300]}")
    _row("all", sum(sums.values()), sums, 0)
    return int(any(sums[outcome] for outcome in BAD))


def _row(name: str, count: int, found: Counter[str], seconds: float) -> None:
    columns = "".join(f"{found[outcome]:>10}" for outcome in OUTCOMES)
    print(f"{name:<16}{count:>7}{columns}{seconds:>7.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
