"""Kills trainings where it hurts, resumes them and compares with one that nobody disturbed.

    python tests/training/kill_driver.py --kills 200 --seed 1

A training is killed (SIGKILL) before or after a call that changes a file, in the middle of a write
(by a limit of the size of files, with the signal of the system), or at a random moment; or the disk
is full from some byte on. One resumed training in three is killed too. The one that reaches the end
must go on from the newest whole checkpoint, give the weights and results of an undisturbed
training, bit by bit, and leave the same files, all of them whole. Trainings are forked from this
process, so that none has to import PyTorch.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import dataclasses
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import knet  # before Detectron2

# isort: split
# what trainings use later, so that not each of them imports it
import numpy as np
import torch
import torch.utils.tensorboard
from detectron2.config import CfgNode
from output_files import difference, read_output, saved_steps

import knet.training.curves
import knet.training.pictures
import knet.training.trainer
from knet.files import UNFINISHED

ROOT = Path(__file__).parents[2]
STEPS = 5
# calls that change files: module and name
_CALLS = [
    *((os, "replace"), (os, "rename"), (os, "fsync"), (os, "unlink"), (os, "remove")),
    (os, "mkdir"),
]


@dataclasses.dataclass(frozen=True)
class Blow:
    """What happens to a training.

    Attributes:
        kind: "call" kills before the call `at`; "size" when a file grows over `at` bytes; "full"
            refuses to write more than `at` bytes to a file; "time" kills after `at` seconds.
        at: see `kind`.
        aim: the call, for messages.
    """

    kind: str
    at: float
    aim: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.at:.6g} {self.aim}".strip()


class Calls:
    """Counts the calls that change files of a folder, before and after each, and kills at one.

    Args:
        folder: whose files count.
        deadly: number of the call, from 0; -1 for none.
    """

    def __init__(self, folder: Path, deadly: int = -1) -> None:
        self.folder = str(folder)
        self.deadly = deadly
        self.seen: list[str] = []

    def install(self) -> None:
        """Replace the functions, for the rest of this process."""
        for module, name in _CALLS:
            setattr(module, name, self._counted(name, getattr(module, name)))
        builtins.open = io.open = self._counted("open", io.open)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **kwargs: Any) -> Any:
            mode = args[0] if args else kwargs.get("mode", "r")
            reading = name == "open" and not set("wax+") & set(mode)
            file = None if reading else self._file(args[0] if name == "replace" else target)
            if file:
                self._count(f"before {name} {file}")
            result = function(target, *args, **kwargs)
            if file:
                self._count(f"after {name} {file}")
            return result

        return call

    def _file(self, target: Any) -> str:
        """Path in the folder, or nothing."""
        if isinstance(target, int):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{target}")
        path = target if isinstance(target, int) else os.path.abspath(target)
        inside = isinstance(path, str) and path.startswith(self.folder + os.sep)
        return path[len(self.folder) + 1 :] if inside else ""

    def _count(self, call: str) -> None:
        if len(self.seen) == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(call)


@dataclasses.dataclass
class Outcome:
    """How a training ended: exit status, or minus the signal's number; and what an end leaves."""

    status: int
    seconds: float
    start: int = -1
    calls: list[str] = dataclasses.field(default_factory=list)


def tiny_config(root: Path) -> CfgNode:
    """A small model on a few scenes, which are drawn into `root` and registered as kill_*.

    Evaluation has to derive the files of instances and semantic labels.
    """
    from knet.config import get_cfg_from_file
    from knet.data import register_coco_panoptic, write_shapes

    for split, count in (("train", 4), ("val", 2)):
        folder = write_shapes(root, split=split, num_scenes=count, seed=3)
        register_coco_panoptic(
            f"kill_{split}",
            image_root=folder / "images",
            panoptic_root=folder / "panoptic",
            panoptic_json=folder / "panoptic.json",
            instances_json=folder / "instances.json" if split == "train" else None,
            sem_seg_root=folder / "semantic" if split == "train" else None,
        )
    opts = [
        "DATASETS.TRAIN", "('kill_train',)", "DATASETS.TEST", "('kill_val',)",
        "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SEED", "5",
        "MODEL.SMALL_RESNET.CHANNELS", "[16, 32, 48, 64]", "MODEL.FPN.OUT_CHANNELS", "16",
        "MODEL.SMALL_RESNET.BLOCKS", "[1, 1, 1, 1]", "MODEL.KNET.NUM_ROUNDS", "1",
        "MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']",
        "MODEL.KNET.HIDDEN_DIM", "16", "MODEL.KNET.FFN_DIM", "32", "MODEL.KNET.NORM_GROUPS", "4",
        "MODEL.KNET.NUM_HEADS", "4", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", str(STEPS),
        "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.PICTURES", "1",
        "SOLVER.CHECKPOINT_MINUTES", "1e-6",  # at every step
    ]  # fmt: skip
    return get_cfg_from_file(str(ROOT / "configs/shapes/panoptic.yaml"), opts)


def draw_nothing() -> None:
    """Pictures and curves are files as before, but not drawn, which would take most of the time."""
    knet.training.pictures.draw_sheet = lambda *_, **__: np.zeros((96, 96, 3), np.uint8)
    knet.training.curves.curves_png = lambda _: bytes(30_000)


def train(cfg: CfgNode, folder: Path, log: Path, blow: Blow | None = None) -> Outcome:
    """Train in a forked process into `folder`, or go on there, and wait for the end.

    Args:
        cfg: of the training; OUTPUT_DIR is set.
        folder: of the output.
        log: file that the process's output and its calls are added to.
        blow: what happens to the process; None for nothing.
    """
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = _train_here(cfg, folder, log, blow)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    if blow and blow.kind == "time":
        time.sleep(blow.at)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcome = Outcome(status, time.monotonic() - start)
    if status == 0 and blow is None:
        outcome.start, outcome.calls = json.loads(log.with_suffix(".json").read_text())
    return outcome


def _train_here(cfg: CfgNode, folder: Path, log: Path, blow: Blow | None) -> int:
    from detectron2.utils.logger import setup_logger

    from knet.errors import run_command
    from knet.training.stop import folder_lock

    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    setup_logger()
    setup_logger(name="knet")
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    calls = Calls(folder, int(blow.at) if blow and blow.kind == "call" else -1)
    calls.install()
    if blow and blow.kind in ("size", "full"):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(blow.at), int(blow.at)))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if blow.kind == "size" else signal.SIG_IGN)

    start = -1

    def run() -> None:
        nonlocal start
        with folder_lock(cfg.OUTPUT_DIR):
            trainer = knet.training.trainer.Trainer(cfg)
            trainer.resume_or_load(resume=True)
            start = trainer.start_iter
            trainer.train()

    status = run_command("train", run)
    if blow is None:
        log.with_suffix(".json").write_text(json.dumps([start, calls.seen]))
    return status


def blows(undisturbed: Outcome, largest: int, count: int, seed: int) -> Iterator[Blow]:
    """`count` blows: half at calls, a quarter in writes, a tenth with full disks, the rest by time.

    Args:
        undisturbed: with the calls to aim at. Kinds of calls come up alike, however often
            they happen.
        largest: bytes of the largest file.
        count, seed: of the blows.
    """
    random_ = random.Random(seed)
    kinds = collections.defaultdict(list)
    for i, call in enumerate(undisturbed.calls):
        moment, name, file = call.split(" ", 2)
        named = re.sub(f"{UNFINISHED}[0-9a-f-]+", UNFINISHED, file)  # otherwise one of its own
        kinds[moment, name, "".join(c for c in named if c.isalpha())].append(i)
    groups = list(kinds.values())
    order: list[list[int]] = []
    for _ in range(count):
        part = random_.random()
        if part < 0.55:
            order = order or random_.sample(groups, len(groups))
            at = random_.choice(order.pop())
            yield Blow("call", at, undisturbed.calls[at])
        elif part < 0.8:
            yield Blow("size", random_.randrange(1 << 16, largest))
        elif part < 0.9:
            yield Blow("full", random_.randrange(1 << 16, largest))
        else:
            yield Blow("time", random_.uniform(0, undisturbed.seconds))


class Driver:
    """Disturbs trainings in a temporary folder.

    Args:
        root: folder for everything.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        draw_nothing()
        self.cfg = tiny_config(root / "data")
        self.whole = root / "whole"
        self.undisturbed = train(self.cfg, self.whole, root / "whole.log")
        if self.undisturbed.status != 0:
            raise RuntimeError((root / "whole.log").read_text())
        self.expected = read_output(self.whole)
        self.largest = max(p.stat().st_size for p in self.whole.rglob("*") if p.is_file())

    def disturb(self, number: int, series: list[Blow]) -> tuple[int, str]:
        """Let a training suffer some blows one after the other and finish it.

        Returns:
            How many of them hit, and what is wrong at the end, if anything.
        """
        folder, log = self.root / f"{number}", self.root / f"{number}.log"
        hits = 0
        wrong = ""
        for blow in series:
            status = train(self.cfg, folder, log, blow).status
            hits += status != 0
            allowed = {"full": (0, 2), "size": (0, -signal.SIGXFSZ)}
            if status not in allowed.get(blow.kind, (0, -signal.SIGKILL)):
                wrong = f"status {status} instead of the blow's"
        saved = saved_steps(folder)
        last = train(self.cfg, folder, log)
        if last.status:
            wrong = wrong or f"resumed with status {last.status}"
        elif last.start != saved:
            wrong = wrong or f"resumed after step {last.start}, but {saved} were saved"
        wrong = wrong or self._judge(folder)
        if not wrong:
            shutil.rmtree(folder)
        else:
            tail = log.read_text(errors="replace").splitlines()[-1:]
            wrong = f"[{'; '.join(map(str, series))}] {wrong}; last line: {''.join(tail)}"
        return hits, wrong

    def _judge(self, folder: Path) -> str:
        try:
            return difference(self.expected, read_output(folder))
        except ValueError as error:
            return str(error)

    def run(self, kills: int, seed: int, say: Callable[[str], None]) -> list[str]:
        """At least so many blows that hit, and what was wrong, a line a training."""
        source = blows(self.undisturbed, self.largest, 3 * kills, seed)
        failures: list[str] = []
        hit = number = 0
        while hit < kills:
            series = [next(source) for _ in range(2 if number % 3 == 2 else 1)]
            hits, wrong = self.disturb(number, series)
            hit += hits
            number += 1
            if wrong:
                failures.append(wrong)
                say(f"FAILED {wrong}")
        say(f"{hit} kills of {number} trainings: {len(failures)} failed")
        return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="default 30")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of kills; default 0")
    parser.add_argument("--keep", action="store_true", help="keep the folder, and name it")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="kills_"))
    try:
        failures = Driver(root).run(args.kills, args.seed, lambda line: print(line, flush=True))
    finally:
        if args.keep:
            print(root)
        else:
            shutil.rmtree(root)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
