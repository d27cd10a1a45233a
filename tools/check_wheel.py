"""Build the source archive, the wheel from it, and try the wheel from an empty folder.

    python tools/check_wheel.py --out dist [--only base export]

A venv gets the wheel, Detectron2 and OpenCV. Without extras, each feature that needs one must say
what to install; then each extra is added alone, its feature must work, and the venv is brought back
to what it was. Needs uv (`pip install uv`), a wheel of Detectron2 (`make install` leaves one in
build/wheels), and some minutes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# a tiny model of random weights and a picture, made from what the wheel brings
PREPARE = """
import shutil
from knet import get_cfg_from_file
from knet.benchmark import random_predictor
from knet.data.toy import toy_data
from knet.zoo import config_path
photos = toy_data("coco_photos") / "images" / "val"
shutil.copyfile(sorted(photos.iterdir())[0], "photo.jpg")
cfg = get_cfg_from_file(str(config_path("shapes/panoptic.yaml")), [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.KNET.HIDDEN_DIM", 16,
    "MODEL.KNET.FFN_DIM", 16, "MODEL.KNET.NORM_GROUPS", 4, "MODEL.KNET.NUM_ROUNDS", 1,
    "MODEL.FPN.OUT_CHANNELS", 16, "DATASETS.TRAIN", ("photos_train",),
    "DATASETS.TEST", ("photos_val",),
])
random_predictor(cfg).save_pretrained("model")
"""
BASE = [
    ["knet", "--version"],
    ["knet", "zoo"],
    ["python", "-c", PREPARE],
    ["knet", "predict", "photo.jpg", "--model", "model", "--output", "drawn.jpg"],
    ["knet", "predict", "photo.jpg", "--model", "model", "--results", "results"],
]
TRAIN = shlex.split(
    "SOLVER.MAX_ITER 1 SOLVER.IMS_PER_BATCH 2 SOLVER.ACCUMULATION_STEPS 1 TEST.EVAL_PERIOD 0 "
    "MODEL.KNET.HIDDEN_DIM 16 MODEL.KNET.FFN_DIM 16 MODEL.KNET.NUM_ROUNDS 1 "
    "INPUT.MIN_SIZE_TRAIN (64,64) INPUT.MIN_SIZE_TEST 64 INPUT.CROP.SIZE (64,64)"
)
NUCLEI = "from knet.data.toy import toy_data; print(toy_data('nuclei'), end='')"
PARQUET = ["knet", "predict", "--input", "photo.jpg", "--output", "found", "--model", "model"]
TIMM = """
import sys
from knet.cli.parser import run
from knet.zoo import config_path
sys.exit(run("benchmark", [
    "--config-file", str(config_path("shapes/panoptic.yaml")), "--repeats", "1", "MODEL.DEVICE",
    "cpu", "MODEL.TIMM.PRETRAINED", "False",
    "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet10t",
]))
"""
SERVE = """
import knet
from knet.app import build_app
build_app(knet.KNetPredictor.from_pretrained("model"))
"""
# extra: its feature, and what a message without it has to name
EXTRAS = {
    "lite": (["knet", "train", "--data", "NUCLEI", "--output", "trained", *TRAIN], "model timm"),
    "timm": (["python", "-c", TIMM], "[timm]"),
    "hub": (["knet", "predict", "photo.jpg", "--model", "nobody/nothing"], "huggingface_hub"),
    "export": (["knet", "export", "--model", "model", "--output", "model.onnx"], "[export]"),
    "openvino": (
        ["knet", "export", "--model", "model", "--format", "openvino", "--output", "model.xml"],
        "[openvino]",
    ),
    "tiles": (
        ["knet", "predict", "photo.jpg", "--model", "model", "--tiles", "256", "--output", "tiles"],
        "[tiles]",
    ),
    "parquet": (PARQUET, "[parquet]"),
    "ray": ([*PARQUET, "--engine", "ray", "--workers", "1"], "[ray]"),
    "app": (["python", "-c", SERVE], "[app]"),
}
MISSING = "pip install"


def main() -> int:
    """Build and try; the exit status is 1 if anything did not do what it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder (%(default)s)")
    parser.add_argument("--folder", type=Path, help="of the venv (a temporary one)")
    parser.add_argument(
        "--only", nargs="+", choices=["base", *EXTRAS, "all"], help="some of the parts"
    )
    args = parser.parse_args()
    wheel = build(args.out.resolve())
    with tempfile.TemporaryDirectory() as temporary:
        return 1 if Trial(args.folder or Path(temporary), wheel).run(args.only) else 0


def build(out: Path) -> Path:
    """The source archive, and the wheel made from it; returns the latter."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    call([sys.executable, "-c", code], cwd=ROOT)
    (archive,) = out.glob("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(out)]
    call([*command, str(archive)], cwd=out)
    (wheel,) = out.glob("knet-*.whl")
    print(f"{archive.name} {archive.stat().st_size >> 10} KB, {wheel.name}", end=" ")
    print(f"{wheel.stat().st_size >> 10} KB", flush=True)
    return wheel


class Trial:
    """A venv with the wheel, and an empty folder to work in."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        uv = shutil.which("uv", path=path)
        wheels = sorted((ROOT / "build/wheels").glob("detectron2-*.whl"))
        if uv is None or not wheels:
            sys.exit("check_wheel.py: error: needs uv (pip install uv) and `make install`")
        self.uv, self.wheel = uv, wheel
        self.bin, self.empty = folder / "venv" / "bin", folder / "empty"
        shutil.rmtree(self.empty, ignore_errors=True)
        self.empty.mkdir(parents=True)
        self.env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.env["KNET_CACHE"] = str(folder / "cache")
        self.wrong: list[str] = []
        call([uv, "venv", "--clear", "--python", sys.executable, str(folder / "venv")])
        self.install(str(wheel), str(wheels[-1]), "opencv-python-headless")
        freeze = [uv, "pip", "freeze", "--python", str(self.bin / "python")]
        self.base = folder / "base.txt"
        self.base.write_bytes(subprocess.run(freeze, check=True, capture_output=True).stdout)

    def install(self, *what: str, command: str = "install") -> None:
        """Install packages, or with `sync` exactly those of a list."""
        place = ["--python", str(self.bin / "python"), "--quiet"]
        constraints = [] if command == "sync" else ["-c", str(ROOT / "constraints.txt")]
        call([self.uv, "pip", command, *place, *constraints, *what])

    def run(self, only: list[str] | None) -> list[str]:
        """Try everything; returns what went wrong."""
        for command in BASE:
            self.expect("base", command, None)
        for command, hint in EXTRAS.values():
            if not only or "base" in only:
                self.expect("base", command, hint)
        for extra, (command, _) in EXTRAS.items():
            if not only or extra in only:
                self.install(f"{self.wheel}[{extra}]")
                self.expect(extra, command, None)
                self.install(str(self.base), command="sync")
        if not only or "all" in only:
            self.install(f"{self.wheel}[{','.join(EXTRAS)}]")
            for command, _ in EXTRAS.values():
                self.expect("all", command, None)
        print(f"{len(self.wrong)} wrong", *self.wrong, sep="\n  ")
        return self.wrong

    def expect(self, installed: str, command: list[str], missing: str | None) -> None:
        """Run a command, which has to work or, with `missing`, to name an extra."""
        for name in ("found", "results", "trained", "model.onnx"):
            place = self.empty / name
            shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(True)
        nuclei = subprocess.run(
            [str(self.bin / "python"), "-c", NUCLEI], cwd=self.empty, env=self.env,
            check=True, capture_output=True, text=True,
        ).stdout if "NUCLEI" in command else ""  # fmt: skip
        words = [str(self.bin / command[0]), *(nuclei if w == "NUCLEI" else w for w in command[1:])]
        done = subprocess.run(
            words, cwd=self.empty, env=self.env, capture_output=True, text=True, timeout=1200
        )
        said = (done.stderr.strip() or done.stdout.strip() or "-").splitlines()[-1]
        if missing:
            good = done.returncode != 0 and MISSING in said and missing in said
        elif "nobody/nothing" in command:  # nothing is there, and there may be no network
            good = done.returncode == 2 and MISSING not in said
        else:
            good = done.returncode == 0
        shown = (
            f"{installed}: {' '.join(' '.join(command).split())[:60]}: {done.returncode}, {said}"
        )
        print("ok   " if good else "WRONG", shown[:220], flush=True)
        if not good:
            self.wrong.append(f"{shown}\n{done.stderr[-2000:]}")


def call(command: list[str], cwd: Path | None = None) -> None:
    """Run a command; its output is shown if it fails, which ends the program."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
