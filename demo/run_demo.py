#!/usr/bin/env python3
"""Train K-Net on the toy data set *shapes*, score it and draw what it sees, in minutes on a CPU.

    python demo/run_demo.py [--seed 2] [--output output/demo]

Runs the commands that a user would type and shows them. At the end the last line of `metrics.json`
in the output folder holds the scores, `sheets/` pictures (scene, ground truth, prediction), and
`report.html` all of it to look through in a browser. If a command fails, its exit status is that of
the demo; Ctrl-C, SIGTERM and SIGHUP reach it, so that a training is stopped with a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
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
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP")  # the last one is not on Windows


def run(*command: str) -> None:
    """Show a command, run it in the project's folder, and end the demo as it does if it fails."""
    print("\n$ " + " ".join(command).replace("-m knet", "knet", 1), flush=True)
    # in a session of its own, so that it gets Ctrl-C once, from here
    child = subprocess.Popen([sys.executable, *command], cwd=ROOT, start_new_session=True)
    numbers = [getattr(signal, name) for name in _PASSED_ON if hasattr(signal, name)]
    # what is ignored, as by nohup, stays so
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {
        number: signal.signal(number, lambda received, _: child.send_signal(received))
        for number in numbers
    }
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status:
        print(f"run_demo.py: error: the command above ended with status {status}", file=sys.stderr)
        sys.exit(status if status > 0 else 128 - status)


def last_line(path: Path) -> dict[str, float]:
    """The scores that the training wrote last."""
    try:
        scores = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        return {key: scores[key] for key in SCORES}
    except (OSError, ValueError, LookupError) as error:
        print(f"run_demo.py: error: {path} has no scores: {error}", file=sys.stderr)
        sys.exit(2)


def main() -> None:
    """The whole demo; exits with the status of a command that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=2, help="of weights and batches")
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--sheets", type=int, default=8, help="scenes to draw for each task")
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    output = args.output
    metrics, report = output / "metrics.json", output / "report.html"
    start = time.perf_counter()
    print(
        "K-Net demo: 1,800 toy scenes are drawn, K-Net learns 1,600 of them and is scored on 200."
    )
    print("6 to 9 minutes on 2 cores, more on slow ones; training and scoring print the time left.")
    config = ["--config-file", "configs/shapes/panoptic.yaml"]
    weights = ["--weights", str(output / "model_final.pth")]
    pictures = ["--dataset", "shapes_val", "--num", str(args.sheets)]
    sheets = [*pictures, "--output", str(output / "sheets")]
    run("-m", "knet", "train", *config, "OUTPUT_DIR", str(output), "SEED", str(args.seed))
    results = last_line(metrics)
    for task in ("panoptic", "instance"):
        run("-m", "knet", "predict", *config, "--task", task, *sheets, *weights)
    page = ["--images", "200", "--output", str(report), "OUTPUT_DIR", str(output)]
    run("-m", "knet", "report", *config, *page, *weights)

    print(f"\nOn 200 scenes that the model has never seen, by Detectron2's evaluators ({metrics}):")
    for key, meaning in SCORES.items():
        print(f"  {key:20s} {results[key]:6.1f}   {meaning}")
    print(f"\nScene | ground truth | prediction: {output / 'sheets'}")
    print(f"\nDone in {(time.perf_counter() - start) / 60:.1f} minutes. Open in a browser:")
    print(f"  {report.resolve()}")


if __name__ == "__main__":
    main()
