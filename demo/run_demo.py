#!/usr/bin/env python3
"""Train K-Net on nuclei in microscopy images, score it and draw what it sees, in minutes on a CPU.

    python demo/run_demo.py [--minutes 5] [--output output/demo]

Runs the commands that a user would type for data of their own and shows them. At the end the output
folder holds the model, its scores (`metrics.json`), `sheets/` with pictures (image, ground truth,
prediction), and `report.html`, all of it to look through in a browser. If a command fails, its exit
status is that of the demo; Ctrl-C, SIGTERM and SIGHUP reach it, so that a training is stopped with
a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain, count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = "datasets/nuclei"
SCORES = {
    "segm/AP": "mask average precision",
    "segm/AP50": "  at an IoU of 0.5",
    "segm/AP75": "  at an IoU of 0.75",
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


def unused(folder: Path) -> Path:
    """The folder itself, or one beside it: an earlier demo stays."""
    names = (folder.with_name(f"{folder.name}_{k}") for k in count(2))
    return next(name for name in chain([folder], names) if not name.exists())


def main() -> None:
    """The whole demo; exits with the status of a command that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5, help="of training (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and batches")
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--sheets", type=int, default=8, help="pictures to draw")
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    output = unused(args.output)
    metrics, report = output / "metrics.json", output / "report.html"
    start = time.perf_counter()
    print(
        "K-Net demo: 158 microscopy images of cells, in which K-Net learns to tell every nucleus, "
        f"and 41 on which it is\nscored. {args.minutes:g} minutes of training, then pictures and a "
        "report."
    )
    length = ["--minutes", f"{args.minutes:g}", "--seed", str(args.seed)]
    run("-m", "knet", "train", "--data", DATA, *length, "--output", str(output))
    results = last_line(metrics)
    trained = ["--config-file", str(output / "config.yaml")]
    trained += ["--weights", str(output / "model_best.pth")]
    pictures = ["--dataset", "nuclei_val", "--num", str(args.sheets)]
    run("-m", "knet", "predict", *trained, *pictures, "--output", str(output / "sheets"))
    run("-m", "knet", "report", *trained, "--output", str(report))

    print(f"\nOn 41 images that the model has never seen, as COCO scores them ({metrics}):")
    for key, meaning in SCORES.items():
        print(f"  {key:10s} {results[key]:6.1f}   {meaning}")
    print(f"\nImage | ground truth | prediction: {output / 'sheets'}")
    print("The same on a picture of yours:")
    print(f"  knet predict --model {output / 'model'} PICTURE")
    print(f"\nDone in {(time.perf_counter() - start) / 60:.1f} minutes. Open in a browser:")
    print(f"  {report.resolve()}")


if __name__ == "__main__":
    main()
