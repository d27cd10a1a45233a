#!/usr/bin/env python3
"""Compare this implementation with golden numbers of the published one.

    python tests/parity/check_parity.py CASE_DIR [CASE_DIR ...]

A case folder holds `meta.json`, `weights.npz`, `inputs.npz`, `train.npz` and `test.npz`; a folder
named `modules` holds one pair of files for each single part. Prints the worst error of every
quantity and a last line `worst: ...`; exits with 1 if a continuous value is off by more than 1e-4
relative, a loss by 1e-4, a gradient norm by 1e-3, or if any assignment, label or id map differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from parity_cases import check_case
from parity_modules import check_modules
from parity_report import Report
from parity_semantic import check_semantic_case

from knet.errors import UserError, run_command


def main(argv: list[str] | None = None) -> int:
    """Check every folder given on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="CASE_DIR")
    folders = parser.parse_args(argv).folders
    return run_command("check_parity.py", lambda: _check(folders))


def _check(folders: Sequence[Path]) -> int:
    report = Report()
    for folder in folders:
        try:
            if (folder / "meta.json").is_file():
                semantic = (
                    "kind" in json.loads((folder / "meta.json").read_text(encoding="utf-8"))["dims"]
                )
                (check_semantic_case if semantic else check_case)(folder, report)
            elif list(folder.glob("*.npz")):
                check_modules(folder, report)
            else:
                raise UserError(
                    f"{folder}: neither a case (meta.json) nor a modules folder (*.npz)"
                )
        except FileNotFoundError as error:
            raise UserError(f"{folder}: incomplete case: {error}") from error
    print(report.summary())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
