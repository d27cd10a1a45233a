"""Sends signals to jobs of two processes and tells how they ended; run by `test_launch.py`.

The jobs are forked from this process, so that only one has to import PyTorch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import knet  # noqa: F401  (before Detectron2)

# isort: split
import torch
import torch.distributed as dist
from detectron2.utils import comm

from knet.errors import UserError, run_command
from knet.training.launch import launch
from knet.training.stop import Agreement, Stopped, StopSignals

# name: what the second process does; the signal, and whether the launcher's group gets it
JOBS = {
    "term": ("works", signal.SIGTERM, False),
    "term_to_all": ("works", signal.SIGTERM, True),
    "int": ("works", signal.SIGINT, False),
    "ctrl_c": ("works", signal.SIGINT, True),
    "hang_up": ("works", signal.SIGHUP, True),
    "pre_empted": ("works", signal.SIGUSR1, True),
    "kill": ("works", signal.SIGKILL, False),
    "one_killed": ("is killed", 0, False),
    "one_fails": ("fails", 0, False),
    "one_refuses": ("refuses", 0, False),
}
# name: what the second of two tasks of srun does, each on a machine of its own
MACHINES = {"lost": "is killed", "told": "refuses", "stopped": "is stopped"}
SECONDS = 60  # that a job may take for what it does in less than one


def work(folder: Path, second: str) -> None:
    """Steps without end that need both processes, until a signal or an error ends them."""
    rank = comm.get_rank()
    with StopSignals() as signals:
        agreement = Agreement()
        (folder / f"pid_{rank}").write_text(str(os.getpid()))
        for step in range(10**6):
            dist.all_reduce(torch.zeros(1))
            if rank == 1 and step == 3:
                act(second)
            stop = agreement.stop(signals.received)
            (folder / f"step_{rank}").write_text(str(step))
            if stop:
                agreement.wait()
                (folder / f"stopped_{rank}").write_text(str(step))
                raise stop


def act(what: str) -> None:
    if what == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "is stopped":  # where the other cannot agree
        raise Stopped(signal.SIGTERM)
    if what == "fails":
        raise TypeError("a defect")
    if what == "refuses":
        raise UserError("no such thing: take another")


def start(folder: Path, second: str) -> int:
    """The process id of a launcher, which leads a group of its own."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        errors = os.open(folder / "errors", os.O_WRONLY | os.O_CREAT)
        os.dup2(errors, 2)
        sys.stderr = os.fdopen(2, "w")
        # as a shell starts programs in the background
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        job = (folder, second)
        status = run_command("job", lambda: launch(work, 2, on_gpu=False, args=job, fork=True))
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        print(error, file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def start_task(folder: Path, second: str, rank: int) -> int:
    """The process id of a task of srun."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        errors = os.open(folder / f"errors_{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(errors, 2)
        sys.stderr = os.fdopen(2, "w")
        os.environ.update(
            SLURM_STEP_NUM_TASKS="2", SLURM_STEP_TASKS_PER_NODE="1(x2)", SLURM_LOCALID="0",
            SLURM_STEP_NODELIST="localhost,other", SLURM_JOB_ID=str(os.getppid()),
            SLURM_STEP_ID=str(list(MACHINES.values()).index(second)), SLURM_PROCID=str(rank),
            SLURM_NODEID=str(rank),
        )  # fmt: skip
        status = run_command("job", lambda: launch(work, 9, on_gpu=False, args=(folder, second)))
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        print(error, file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def run_machines(folder: Path, second: str) -> dict:
    """How the tasks of two machines ended, and what the first one said."""
    folder.mkdir()
    pids = [start_task(folder, second, rank) for rank in (0, 1)]
    try:
        wait_until(lambda: not any(map(is_alive, pids)))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    status = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return {"status": status, "errors": (folder / "errors_0").read_text(), "pid": pids[1]}


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_until(condition) -> None:
    """A job that hangs fails its tests, with the whole driver."""
    for _ in range(round(SECONDS / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise TimeoutError(f"nothing has happened for {SECONDS} seconds")


def run(folder: Path, second: str, number: int, whole_group: bool) -> dict:
    """How a job ended: status, what it said, and the step after which each process stopped."""
    folder.mkdir()
    launcher = start(folder, second)
    try:
        if number:
            ready = [folder / f"step_{rank}" for rank in (0, 1)]
            wait_until(lambda: all(path.is_file() and path.read_text() for path in ready))
            (os.killpg if whole_group else os.kill)(launcher, number)
        wait_until(lambda: os.waitid(os.P_PID, launcher, os.WEXITED | os.WNOHANG | os.WNOWAIT))
        pids = [int((folder / f"pid_{rank}").read_text()) for rank in (0, 1)]
        wait_until(lambda: not any(map(is_alive, pids)))
    except TimeoutError:
        os.killpg(launcher, signal.SIGKILL)
        raise
    status = os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])
    stopped = sorted(path.read_text() for path in folder.glob("stopped_*"))
    return {"status": status, "errors": (folder / "errors").read_text(), "stopped": stopped}


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    ended = {name: run(root / name, *job) for name, job in JOBS.items()}
    ended.update({name: run_machines(root / name, second) for name, second in MACHINES.items()})
    print(json.dumps(ended))
