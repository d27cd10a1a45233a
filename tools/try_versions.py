"""Try the oldest or newest versions that setup.py allows: the quick tests in a venv of theirs.

    python tools/try_versions.py oldest --python python3.10
    python tools/try_versions.py newest --python python3.13

Directly named packages get the lowest version that has a wheel for that Python (`oldest`), or all
the highest one that fits (`newest`). The last line is a row for the table of docs/INSTALL.md. Needs
uv (`pip install uv`), some minutes and 6 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "opencv,lite,hub,export,parquet,cityscapes,docs,test"
# built from source they would need compilers, and versions without a wheel are none that pip takes
COMPILED = (
    *("numpy", "scipy", "pillow", "pycocotools", "shapely", "pyarrow", "opencv-python-headless"),
    *("torch", "torchvision", "safetensors", "onnx", "onnxruntime"),
)
SHOWN = ("torch", "torchvision", "numpy", "scipy", "pillow", "timm")
QUICK = "not slow and not browser and not export"


def main() -> int:
    """Build the venv and run the tests; the exit status is that of pytest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=["oldest", "newest"])
    parser.add_argument("--python", default=sys.executable, help="interpreter (this one)")
    parser.add_argument("--folder", type=Path, help="of the venv (build/WHICH)")
    parser.add_argument("--jobs", default="2", help="processes of the tests (%(default)s)")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files or folders (tests)")
    args = parser.parse_args()
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        print("try_versions.py: error: uv is not there: pip install uv", file=sys.stderr)
        return 2
    folder = args.folder or ROOT / "build" / args.which
    python = str(folder / "bin" / "python")
    lowest = args.which == "oldest"
    binary = [word for name in COMPILED for word in ("--only-binary", name)]
    install = [uv, "pip", "install", "--python", python, *binary, "--resolution"]
    install.append("lowest-direct" if lowest else "highest")
    # the lowest versions of what was installed stay when Detectron2's requirements are added
    steps = [
        [uv, "venv", "--clear", "--seed", "--python", args.python, str(folder)],
        [uv, "pip", "install", "--python", python, "pip<26.3", "setuptools<82", "wheel"],
        [*install, "-e", f"{ROOT}[{EXTRAS}]"],
        [python, str(ROOT / "tools/build_detectron2_wheel.py"), "--out", str(folder / "wheels")],
    ]
    for step in steps:
        run(step)
    (wheel,) = (folder / "wheels").glob("*.whl")
    run([uv, "pip", "install", "--python", python, str(wheel)])
    env = {**os.environ, "PYTHONPATH": str(ROOT / "projects")}
    tests = [python, "-m", "pytest", "-q", "-n", args.jobs, "--dist", "worksteal", "-m", QUICK]
    output: list[str] = []
    with subprocess.Popen(
        [*tests, *args.tests], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            output.append(line)
    summary = next(
        (line for line in reversed(output) if re.search(r"\d+ (passed|failed)", line)), ""
    )
    names = subprocess.run(
        [uv, "pip", "freeze", "--python", python], check=True, capture_output=True, text=True
    ).stdout
    versions = dict(line.split("==") for line in names.splitlines() if line.count("==") == 1)
    version = subprocess.run([python, "-V"], check=True, capture_output=True, text=True).stdout
    cells = [args.which, version.split()[1], *(versions[name] for name in SHOWN)]
    print(f"| {' | '.join(cells)} | {summary.strip(' =' + chr(10))} |")
    return process.returncode


def run(command: list[str]) -> None:
    """Show a command and run it; an error ends the program."""
    print("$", " ".join(command), flush=True)
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(main())
