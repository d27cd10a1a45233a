"""Damaged data sets: loading, mapping and checking end in an error that names the file, or work.

`python tests/data/test_fuzz.py FIRST LAST` tries the seeds from FIRST to LAST - 1.
"""

from __future__ import annotations

import copy
import functools
import json
import resource
import struct
import sys
import tempfile
import traceback
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workload import peak_memory

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog

from knet.config import get_cfg_from_file
from knet.data import KNetDatasetMapper, register_custom
from knet.data.check.data_set import check_dataset
from knet.data.coco_instances import instance_file_defects
from knet.data.defects import DataError
from knet.data.derive import panoptic_to_instances

pytestmark = pytest.mark.slow

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from good_sets import CLASSES, FORMATS, finish, start
else:
    from .good_sets import CLASSES, FORMATS, finish, start

_MEBIBYTES = 300  # that a damaged file may cost
NAMED = (DataError, ValueError, FileNotFoundError)
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3.5, 10**9, 10**30, -(10**30), float("nan"), float("inf"), "",
    "x", "../..", "a\0b", "\ud800", "é", [], [[]], {}, {"a": [1]}, [None], [1, 2, 3],
    [10**9, 10**9], "0" * 40, [[[[[[]]]]]], 2**31, 2**63, 2**64, -(2**63), 1e300, "7", [10**12],
    {"size": [10**9, 10**9], "counts": [10**18]}, {"size": [40, 60], "counts": "\x7f"},
    {"size": [40, 60], "counts": [2400]}, [[0] * 6], [[1e9] * 6], [[float("nan")] * 8],
    [["1"] * 6], {"size": [40, 60], "counts": "P" * 500}, 10**4000, "@deep", "@deeper",
    {"size": [10**6, 10**6], "counts": [10**12]}, 10**6,
]  # fmt: skip


@functools.cache
def base_cfg():
    cfg = get_cfg_from_file("configs/shapes/panoptic.yaml", [])
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.KNET_COLOR_AUG = []
    return cfg


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths to every value within lists and objects."""
    found = [path] if path else []
    steps = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in steps:
        own = (*path, key)
        found += places(inner, own) if isinstance(inner, (dict, list)) else [own]
    return found


def damage_json(content: Any, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 4)):
        options = places(content)
        *way, last = options[rng.integers(len(options))]
        holder = content
        for key in way:
            holder = holder[key]
        kind = rng.integers(4)
        if kind == 0:
            del holder[last]
        elif kind == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        else:
            holder[last] = copy.deepcopy(ODD[rng.integers(len(ODD))])


def damage_bytes(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    kind = rng.integers(6)
    if kind == 0:
        content = content[: rng.integers(len(content))]
    elif kind == 1 and content[1:4] == b"PNG":  # the size, with a check sum that fits
        content[16 + rng.integers(8)] = rng.integers(256)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif kind == 2:
        content = bytearray(rng.integers(0, 256, len(content), dtype=np.uint8).tobytes())
    elif kind == 3:
        place = int(rng.integers(len(content)))
        content[place:place] = rng.integers(0, 256, 9, dtype=np.uint8).tobytes()
    else:
        for place in rng.integers(0, min(len(content), 120 if kind == 4 else 10**6), 4):
            content[place] = rng.integers(256)
    path.write_bytes(content)


def damaged(seed: int, root: Path) -> dict[str, Any]:
    """The entry of a damaged data set, of which one file is damaged."""
    rng = np.random.default_rng(seed)
    files = start(FORMATS[seed % 3], root)
    target = root / "annotations.json"
    part = rng.integers(4)
    if files.form != "semantic" and part < 2:
        damage_json(files.content, rng)
        text = json.dumps(files.content)
        for word, depth in (("@deeper", 985), ("@deep", 940)):
            text = text.replace(f'"{word}"', "[" * depth + "]" * depth)
        files.text = text
    entry = finish(files, f"fuzz_{seed}")
    if files.form == "semantic" and part == 0:
        target = root / ["classes.json", "classes.txt"][rng.integers(2)]
        names: list[Any] = [{"name": name, "color": [1, 2, 3]} for name in CLASSES]
        if target.suffix == ".json" and rng.integers(2):
            damage_json(names, rng)
        content = json.dumps(names) if target.suffix == ".json" else "\n".join(CLASSES)
        target.write_text(content)
        if rng.integers(2):
            damage_bytes(target, rng)
        return {**entry, "CLASSES": str(target)}
    if files.form != "semantic" and part == 2:
        kind = rng.integers(4)
        text = target.read_text()
        if kind == 0:
            damage_bytes(target, rng)
        elif kind == 1:
            target.write_bytes(text.encode(["utf-16", "utf-32", "utf-8-sig", "cp500"][seed % 4]))
        elif kind == 2:
            target.write_text('{"images": ' + "[" * 50000)
        else:
            target.write_text(text.replace("40", "4" * int(rng.integers(1, 6000)), 1))
    elif files.form == "semantic" or part == 3:
        target = [files.picture(), files.labels()][rng.integers(2)]
        target = target if target.is_file() else files.picture()
        damage_bytes(target, rng)
    return entry


def uses(entry: dict[str, Any]) -> list[BaseException]:
    """The errors of all that reads a data set."""
    name = entry["NAME"]
    cfg = base_cfg().clone()
    cfg.DATASETS.CUSTOM, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [entry], (name,), ()

    def load() -> None:
        register_custom(cfg)
        mapper = KNetDatasetMapper(cfg, True)
        for record in DatasetCatalog.get(name):
            mapper(record)

    def check() -> None:
        cfg.DATASETS.ON_ERROR = "skip"
        register_custom(cfg)
        report = check_dataset(name)
        for defect in report.defects:
            assert defect.kind != "record-unchecked", str(defect)

    def derive() -> None:
        if entry["FORMAT"] == "coco_panoptic":
            out = Path(entry["PANOPTIC_ROOT"]).parent / "derived.json"
            panoptic_to_instances(entry["PANOPTIC_JSON"], entry["PANOPTIC_ROOT"], str(out))
        elif entry["FORMAT"] == "coco_instances":
            instance_file_defects(entry["JSON_FILE"])

    found = []
    try:
        for use in (load, check, derive):
            try:
                use()
            except Exception as error:
                found.append(error)
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)
    return found


def peak() -> float:
    """Memory that this process had at most, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def try_seed(seed: int, root: Path) -> list[str]:
    """What is wrong with the errors of a seed."""
    wrong = []
    for error in uses(damaged(seed, root)):
        if not isinstance(error, NAMED) or str(root) not in str(error):
            lines = traceback.format_exception(type(error), error, error.__traceback__)
            wrong.append(f"seed {seed}: {''.join(lines[-3:])}")
    return wrong


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_every_failure_names_the_file(tmp_path, first):
    wrong = []

    def try_all():
        for seed in range(first, first + 100):
            wrong.extend(try_seed(seed, tmp_path / str(seed)))

    more = peak_memory(try_all, "cpu")
    assert not wrong, "\n".join(wrong)
    assert more < _MEBIBYTES << 20


if __name__ == "__main__":
    print(f"{peak():.0f} MiB before")
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        with tempfile.TemporaryDirectory() as folder:
            for line in try_seed(number, Path(folder, "set")):
                print(line, f"({peak():.0f} MiB)")
    print(f"{peak():.0f} MiB at most")
