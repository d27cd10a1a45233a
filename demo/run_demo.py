#!/usr/bin/env python3
"""Train K-Net on the toy data set *shapes*, score it and draw what it sees, in minutes on a CPU.

    python demo/run_demo.py [--seed 2] [--output output/demo]

Runs the commands that a user would type and shows them. At the end `metrics.json` in the output
folder holds the scores, `sheets/` pictures (scene, ground truth, prediction), and `report.html` all
of it to look through in a browser.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCORES = {
    "panoptic_seg/PQ": "panoptic quality",
    "panoptic_seg/PQ_th": "  of things",
    "panoptic_seg/PQ_st": "  of stuff",
    "segm/AP": "mask average precision",
    "sem_seg/mIoU": "mean intersection over union",
}


def run(*command: str) -> None:
    """Show a command, run it in the project's folder, and stop the demo if it fails."""
    print("\n$ python " + " ".join(command), flush=True)
    subprocess.run([sys.executable, "-W", "ignore", *command], cwd=ROOT, check=True)


def main() -> int:
    """The whole demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=2, help="of weights and batches")
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--sheets", type=int, default=8, help="scenes to draw for each task")
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    output = args.output
    metrics, report = output / "metrics.json", output / "report.html"
    metrics.unlink(missing_ok=True)  # Detectron2 appends; this file is to hold one run
    start = time.perf_counter()
    print(
        "K-Net demo: 1,800 toy scenes are drawn, K-Net learns 1,600 of them and is scored on 200."
    )
    print("8 to 11 minutes on 2 cores; training and scoring print the time left.")
    config = ["--config-file", "configs/shapes/panoptic.yaml"]
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    sheets = ["--num", str(args.sheets), "--output", str(output / "sheets")]
    try:
        run("train_net.py", *config, "OUTPUT_DIR", str(output), "SEED", str(args.seed))
        for task in ("panoptic", "instance"):
            run("tools/visualize_results.py", *config, "--task", task, *sheets, *weights)
        page = ["--images", "200", "--output", str(report), "OUTPUT_DIR", str(output)]
        run("tools/report.py", *config, *page, *weights)
    except subprocess.CalledProcessError as error:
        print(f"demo: the command above failed with status {error.returncode}", file=sys.stderr)
        return 1

    results = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
    print(f"\nOn 200 scenes that the model has never seen, by Detectron2's evaluators ({metrics}):")
    for key, meaning in SCORES.items():
        print(f"  {key:20s} {results[key]:6.1f}   {meaning}")
    print(f"\nScene | ground truth | prediction: {output / 'sheets'}")
    print(f"\nDone in {(time.perf_counter() - start) / 60:.1f} minutes. Open in a browser:")
    print(f"  {report.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
