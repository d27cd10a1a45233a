"""Many pictures on Ray and in plain loops: equal results, interruptions, memory, speed.

    python benchmarks/batch.py                # 2,000 drawn pictures, some minutes on two cores
    python benchmarks/batch.py --images 200

Ray has two machines of one CPU each, which this one plays; every process computes on one thread.
The model is small and its weights random, so Ray's share of the time is as large as it gets. Speed
is that between the second finished shard and the last: what starts once does not count. The two
loops run once before Ray and once after it, for what slows the machine down meanwhile.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from knet.config import get_cfg_from_file
from knet.data import write_shapes
from knet.data.custom import register_data_sets
from knet.predictor import KNetPredictor
from knet.results.parquet import find_shards, read_rows

_TARS = 20
# runs the command line and tells the most memory that this process had
_CHILD = """
import sys
from knet_command import main
code = main(sys.argv[1:])
with open("/proc/self/status") as file:
    print([line for line in file if line.startswith("VmHWM")][0], file=sys.stderr)
sys.exit(code)
"""
_SMALL = [
    *("MODEL.SMALL_RESNET.CHANNELS", [16, 32, 48, 64], "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.KNET.HIDDEN_DIM", 16),
    *("MODEL.KNET.FFN_DIM", 32, "MODEL.KNET.NORM_GROUPS", 4, "MODEL.KNET.NUM_HEADS", 4),
    *("MODEL.KNET.TEST.OVERLAP_THRESH", 0.0, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
]


def main() -> None:
    """Run all and print what was found; ends with an error if something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--broken", type=int, default=20)
    parser.add_argument("--shard-size", type=int, default=50)
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args.images, args.broken, args.shard_size)


def measure(folder: Path, images: int, broken: int, shard_size: int) -> None:
    """Everything, with its files in a folder."""
    _write_model(folder / "model")
    tars = _write_tars(folder, images, broken)
    runs = Runs(folder, shard_size)
    plain = runs.start("plain", tars)
    memory = {("plain", images): runs.end(plain)}
    expected = _contents(folder / "plain")
    rows = list(read_rows(find_shards(folder / "plain")))
    errors = [row["error"] for row in rows if row["error"] is not None]
    print(f"plain loop: {len(rows) - len(errors)} results, {len(errors)} errors, among them")
    print(f"  {errors[0].replace(str(folder), '…')}")
    named = sum(row["file_name"] in row["error"] for row in rows if row["error"])
    assert (len(rows), len(errors), named) == (images, broken, broken)

    few = tars[: _TARS // 4]
    memory["plain", images // 4] = runs.end(runs.start("plain_few", few))
    loops = [f"loop_{k}" for k in range(4)]
    runs.end(*(runs.start(name, tars[k::2]) for k, name in enumerate(loops[:2])))
    with Machines() as address:
        ray = runs.start("ray", tars, address)
        memory["ray", images] = runs.end(ray)
        print(f"Ray, 2 workers: files equal to the loop's: {_contents(folder / 'ray') == expected}")
        assert _contents(folder / "ray") == expected
        runs.end(*(runs.start(name, tars[k::2]) for k, name in enumerate(loops[2:])))
        memory["ray", images // 4] = runs.end(runs.start("ray_few", few, address))

        killed = runs.start("killed", tars, address)
        while len(find_shards(folder / "killed")) < len(expected) / 3:
            assert killed.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        time.sleep(5)  # until its workers have gone
        kept = {path: path.stat().st_mtime for path in find_shards(folder / "killed")}
        runs.end(runs.start("killed", tars, address))
        same = _contents(folder / "killed") == expected
        untouched = all(path.stat().st_mtime == at for path, at in kept.items())
        print(
            f"killed with {len(kept)} of {len(expected) - 1} shards and started again: files "
            f"equal: {same}, finished ones kept: {untouched}"
        )
        assert same and untouched
    for engine in ("plain", "ray"):
        few_mb, all_mb = (memory[engine, count] for count in (images // 4, images))
        print(
            f"peak memory of the process that was called ({engine}): {few_mb:.0f} MB of "
            f"{images // 4} pictures, {all_mb:.0f} MB of {images} ({all_mb / few_mb - 1:+.1%})"
        )
        assert abs(all_mb / few_mb - 1) < 0.1
    before, after = (
        _speed([folder / name for name in pair], shard_size) for pair in (loops[:2], loops[2:])
    )
    ours, two = _speed([folder / "ray"], shard_size), (before + after) / 2
    print(
        f"images/s: two loops {before:.1f} before and {after:.1f} after, Ray {ours:.1f} "
        f"({ours / two - 1:+.1%})"
    )

    cut = folder / "cut.tar"
    cut.write_bytes(Path(tars[0]).read_bytes()[: os.path.getsize(tars[0]) // 2])
    said = subprocess.run(runs.words("cut", [str(cut)]), capture_output=True, text=True)
    (line,) = [line for line in said.stderr.splitlines() if "truncated" in line]
    print(f"a truncated tar, status {said.returncode}: {line.replace(str(folder), '…')}")


class Runs:
    """Calls of the command line in processes of their own."""

    def __init__(self, folder: Path, shard_size: int) -> None:
        self._folder, self._shard_size = folder, shard_size

    def words(self, name: str, tars: Sequence[str], engine: str = "plain") -> list[str]:
        words = [sys.executable, "-W", "ignore", "-c", _CHILD, "predict"]
        words += ["--model", str(self._folder / "model"), "--input", *tars, "--engine", engine]
        words += ["--output", str(self._folder / name), "--shard-size", str(self._shard_size)]
        return [*words, *(["--workers", "2"] if engine == "ray" else []), "MODEL.DEVICE", "cpu"]

    def start(self, name: str, tars: Sequence[str], address: str = "") -> subprocess.Popen[str]:
        """Start a run; with the address of a cluster on Ray."""
        words = self.words(name, tars, "ray" if address else "plain")
        env = {**os.environ, **({"RAY_ADDRESS": address} if address else {})}
        with open(self._folder / f"{name}.log", "a+", encoding="utf-8") as log:
            return subprocess.Popen(words, env=env, text=True, stdout=log, stderr=log)

    def end(self, *processes: subprocess.Popen[str]) -> float:
        """Wait for runs; the peak memory of the first in MB."""
        statuses = [process.wait() for process in processes]
        name = processes[0].args[processes[0].args.index("--output") + 1]  # type: ignore[union-attr]
        log = Path(f"{name}.log").read_text(encoding="utf-8")
        assert set(statuses) <= {0, 1} and "VmHWM" in log, log
        return int(log.rpartition("VmHWM:")[2].split()[0]) / 1024


class Machines:
    """Two machines of a Ray cluster, of one CPU each, and a head without any."""

    def __enter__(self) -> str:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        for wait in ("raylet_start_wait_time_s", "worker_register_timeout_seconds"):
            os.environ.setdefault(f"RAY_{wait}", "600")  # a busy machine is slow to start
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            self._cluster.add_node(num_cpus=1)
        self._cluster.wait_for_nodes()
        return self._cluster.address

    def __exit__(self, *error: object) -> None:
        self._cluster.shutdown()


def _write_model(folder: Path) -> None:
    torch.manual_seed(0)
    cfg = get_cfg_from_file("configs/shapes/panoptic.yaml", _SMALL)
    register_data_sets(cfg)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    KNetPredictor(cfg, build_model(cfg), metadata).save_pretrained(folder)


def _write_tars(folder: Path, images: int, broken: int) -> list[str]:
    """Drawn pictures, each scene at several places, in `_TARS` tars; some of them are cut."""
    split = write_shapes(folder / "shapes", split="val", num_scenes=min(images, 100), seed=1)
    scenes = [np.array(Image.open(path)) for path in sorted((split / "images").iterdir())]
    pictures = [folder / "pictures" / f"{k:06d}.png" for k in range(images)]
    pictures[0].parent.mkdir()
    for k, picture in enumerate(pictures):
        scene, turns = scenes[k % len(scenes)], k // len(scenes)
        Image.fromarray(np.roll(scene, 4 * turns, axis=1)).save(picture)
    for k in np.random.default_rng(0).choice(images, broken, replace=False):
        pictures[k].write_bytes(pictures[k].read_bytes()[: pictures[k].stat().st_size // 2])
    tars = []
    for k in range(_TARS):
        tars.append(str(folder / f"shard-{k:04d}.tar"))
        with tarfile.open(tars[-1], "w") as tar:
            for picture in pictures[k * images // _TARS : (k + 1) * images // _TARS]:
                tar.add(picture, picture.name)
    return tars


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def _speed(folders: Sequence[Path], shard_size: int) -> float:
    """Images a second of all workers, from their first shards to the last."""
    ends = sorted(path.stat().st_mtime for folder in folders for path in find_shards(folder))
    return (len(ends) - 2) * shard_size / (ends[-1] - ends[1])


if __name__ == "__main__":
    main()
