"""What a data set of a million objects costs: time until the first batch, memory of all processes.

    python benchmarks/large_data.py --folder /tmp/large

writes annotations of 120,000 pictures with 1,000,000 polygons once, then starts trainings' loaders:
one process with one worker, and two with four each as `train_net.py` launches them, with and
without the records kept on disk (DATASETS.RECORDS_FOLDER). Each goes through some records; its
mapper looks at every object and decodes no picture, so what is measured is the annotations. Memory
is the sum of PSS over launcher, processes and workers: a page that several share counts once.
`empty` is the same with a data set of 100 pictures: what Python, PyTorch and the project take by
themselves. `before` takes 5 GB a process: --records 30000 is a quarter.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RECORDS, OBJECTS, CLASSES = 120_000, 1_000_000, 80
HEIGHT, WIDTH = 480, 640


def generate(folder: Path, records: int, objects: int) -> None:
    """Write a COCO file of instances, and links to one picture."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    picture = folder / "picture.jpg"
    Image.fromarray(generator.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(picture)
    for k in range(records):
        link = images / f"{k:06d}.jpg"
        if not link.is_symlink():
            link.symlink_to(picture)
    owners = np.sort(generator.integers(0, records, objects))
    owners[:records] = np.arange(records)  # none is empty
    angles = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    unfinished = folder / "unfinished.json"
    with open(unfinished, "w", encoding="utf-8") as stream:
        header = [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)]
        stream.write('{"images": [')
        names = (
            json.dumps({"id": k, "file_name": f"{k:06d}.jpg", "height": HEIGHT, "width": WIDTH})
            for k in range(records)
        )
        stream.write(", ".join(names) + '], "annotations": [')
        for k, owner in enumerate(owners.tolist()):
            radius = generator.uniform(5, 80)
            x, y = generator.uniform(80, WIDTH - 80), generator.uniform(80, HEIGHT - 80)
            radii = radius * generator.uniform(0.8, 1.0, len(angles))
            points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)
            low, high = points.min(axis=0), points.max(axis=0)
            entry = {
                "id": k + 1,
                "image_id": owner,
                "category_id": k % CLASSES + 1,
                "iscrowd": 0,
                "area": round(math.pi * radius * radius, 2),
                "bbox": [round(v, 2) for v in (*low.tolist(), *(high - low).tolist())],
                "segmentation": [[round(v, 2) for v in points.reshape(-1).tolist()]],
            }
            stream.write((", " if k else "") + json.dumps(entry))
        stream.write(f'], "categories": {json.dumps(header)}}}')  # last, as in COCO's files
    os.replace(unfinished, folder / "annotations.json")


def look(record: dict) -> dict:
    """A mapper that reads all of a record."""
    points = sum(len(p) for a in record["annotations"] for p in a["segmentation"])
    return {"image_id": record["image_id"], "points": points}


def start(folder: Path, kept: str, processes: int, workers: int, samples: int) -> None:
    """The launcher of a training."""
    now = time.monotonic()
    import knet.training.run  # noqa: F401  (all that a training imports)
    from knet.training.launch import launch

    imports = time.monotonic() - now
    work = (folder, kept, workers, samples, imports)
    launch(load, processes, on_gpu=False, args=work, fork=True)


def load(folder: Path, kept: str, workers: int, samples: int, imports: float) -> None:
    """One process of a training: prints when it has its first batch, then goes on and waits."""
    from knet.config import get_cfg_from_file
    from knet.data import loader as module
    from knet.data import register_coco_instances

    if not kept:  # as without the file of records
        from knet.data.record_cache import Source

        Source.is_large = False  # type: ignore[assignment,method-assign]
    module.usable_workers = lambda asked: asked  # whatever this machine has
    imported, used = time.monotonic(), time.process_time()
    cfg = get_cfg_from_file("configs/shapes/instance.yaml", [])
    cfg.DATASETS.TRAIN, cfg.DATASETS.RECORDS_FOLDER = ("large",), kept
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = workers, 8
    register_coco_instances(
        "large", image_root=folder / "images", json_file=folder / "annotations.json"
    )
    batches = iter(module.build_train_loader(cfg, look, seed=0, start_step=0))
    next(batches)
    now = time.monotonic()
    times = {"imports": imports, "first batch": now - imported}
    print(json.dumps({**times, "processor": time.process_time() - used}), flush=True)
    for _ in range(samples // 8):
        next(batches)
    print("done", flush=True)
    time.sleep(1e6)  # until it is ended


def memory(process: int) -> int:
    """Bytes of PSS of a process and its children."""
    total = 0
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    for line in Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total + sum(memory(int(child)) for child in children)


def measure(folder: Path, kept: str, processes: int, workers: int, samples: int) -> dict:
    """Start processes, let them go through samples, and add up what they hold."""
    numbers = [str(number) for number in (processes, workers, samples)]
    command = [sys.executable, __file__, "--folder", str(folder), "--load", *numbers]
    with subprocess.Popen(
        [*command, "--kept", kept], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as launcher:
        assert launcher.stdout is not None
        lines = [launcher.stdout.readline() for _ in range(2 * processes)]
        held = memory(launcher.pid)
        os.killpg(launcher.pid, signal.SIGKILL)
    times = [json.loads(line) for line in lines if line != "done\n"]
    return {
        "processes": processes,
        "workers": workers,
        "records kept": bool(kept),
        "imports (s)": round(max(t["imports"] for t in times), 1),
        "first batch (s)": round(max(t["first batch"] for t in times), 1),
        "of it processor (s)": round(max(t["processor"] for t in times), 1),
        "PSS (MB)": round(held / 1e6),
    }


def main() -> None:
    """Generate what is missing, measure, print a line of JSON a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--records", type=int, default=RECORDS, help="with 25 objects to 3")
    parser.add_argument("--samples", type=int, default=20_000, help="records of each process")
    parser.add_argument("--before-samples", type=int, default=2000, help="without the kept file")
    parser.add_argument("--runs", nargs="+", default=["empty", "after", "before"])
    parser.add_argument("--load", nargs=3, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kept", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        start(args.folder, args.kept, *args.load)
        return
    objects = OBJECTS * args.records // RECORDS
    small, large = args.folder / "small", args.folder / f"large-{args.records}"
    for folder, sizes in ((small, (100, 1000)), (large, (args.records, objects))):
        if not (folder / "annotations.json").is_file():
            generate(folder, *sizes)
    size = (large / "annotations.json").stat().st_size
    print(f"{args.records:,} records, {objects:,} objects, {size / 1e6:.0f} MB", flush=True)
    kept = str(args.folder / "records")
    if "after" in args.runs:
        print("first time:", json.dumps(measure(large, kept, 1, 1, 8)), flush=True)
    for run in args.runs:
        folder = small if run == "empty" else large
        samples = args.before_samples if run == "before" else args.samples
        for processes, workers in ((1, 1), (2, 4)):
            found = measure(folder, kept * (run == "after"), processes, workers, samples)
            print(f"{run}:", json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
