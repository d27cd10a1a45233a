"""Where a process stands in its job, as `torchrun` or SLURM's `srun` tells it."""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from knet.errors import UserError

__all__ = [
    "TORCHRUN",
    "Place",
    "host_of",
    "job_name",
    "place_of_launcher",
    "tasks_without_srun",
    "was_restarted",
]

TORCHRUN = "torchrun"
_SRUN = "srun"
# of torchrun, in the order of `Place`
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
# ports that neither services (below) nor outgoing connections (above) usually have
_PORTS = range(15000, 30000)


class Place(NamedTuple):
    """Of one process among those of a job.

    Attributes:
        rank, world_size: among all; the first is 0.
        local_rank, local_size: among those of its machine.
        machine: number of the machine, from 0.
        url: where all meet, as of `torch.distributed.init_process_group`.
        launcher: program that has started it; empty for `knet.training.launch`.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    machine: int
    url: str
    launcher: str = ""

    def shares_gpus(self) -> bool:
        """Whether it sees the GPUs of all processes of its machine; srun may give it its own."""
        return self.launcher != _SRUN

    def environment(self) -> dict[str, str]:
        """The variables in which torchrun tells a place, for libraries that read them."""
        return {name: str(number) for name, number in zip(_VARIABLES, self)}


def place_of_launcher() -> Place | None:
    """The place of this process, if torchrun or srun has started it as one of several.

    Of srun only steps of several tasks count: in a batch script, or with one task, processes are
    started here.

    Raises:
        UserError: a variable of srun is missing or no number.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        rank, total, local_rank, local_size, machine = (_number(n, TORCHRUN) for n in _VARIABLES)
        return Place(rank, total, local_rank, local_size, machine, "env://", TORCHRUN)
    if "SLURM_STEP_NUM_TASKS" not in os.environ or _number("SLURM_STEP_NUM_TASKS", _SRUN) == 1:
        return None
    machine = _number("SLURM_NODEID", _SRUN)
    return Place(
        _number("SLURM_PROCID", _SRUN),
        _number("SLURM_STEP_NUM_TASKS", _SRUN),
        _number("SLURM_LOCALID", _SRUN),
        _tasks_of_node(_text("SLURM_STEP_TASKS_PER_NODE", _SRUN), machine),
        machine,
        _slurm_url(),
        _SRUN,
    )


def tasks_without_srun() -> int:
    """How many tasks SLURM has given a job whose script has started this process without srun."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    return int(tasks) if tasks.isdecimal() and "SLURM_STEP_NUM_TASKS" not in os.environ else 1


def was_restarted() -> bool:
    """Whether torchrun has started the processes anew, or SLURM the job: what it did goes on."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") not in ("", "0") for name in names)


def job_name() -> str:
    """What SLURM or torchrun (its `--rdzv-id`) call this job; empty without them."""
    return os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID", "")


def host_of(url: str) -> str:
    """The machine of the first process."""
    host = os.environ["MASTER_ADDR"] if url == "env://" else urlsplit(url).hostname
    if not host:
        raise UserError(f"--dist-url {url} names no machine: write tcp://HOST:PORT")
    return host


def _slurm_url() -> str:
    host = os.environ.get("MASTER_ADDR") or first_host(_text("SLURM_STEP_NODELIST", _SRUN))
    # steps of one job may run beside each other, and jobs on the same machine
    job = 64 * _number("SLURM_JOB_ID", _SRUN) + _number("SLURM_STEP_ID", _SRUN)
    port = os.environ.get("MASTER_PORT") or _PORTS[job % len(_PORTS)]
    return f"tcp://{host}:{port}"


def first_host(names: str) -> str:
    """The first of SLURM's list of machines: `node07` of `node[07-09,12],gpu1`."""
    first = re.split(r",(?![^\[]*\])", names)[0]  # at commas outside of brackets
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _tasks_of_node(counts: str, node: int) -> int:
    """Entry `node` of SLURM's list of tasks a machine, such as `4(x3),2`."""
    for part in counts.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            break
        node -= int(found[2] or 1)
        if node < 0:
            return int(found[1])
    raise UserError(
        f"srun: SLURM_STEP_TASKS_PER_NODE {counts!r} does not tell this machine's tasks"
    )


def _number(name: str, launcher: str) -> int:
    text = _text(name, launcher)
    if not text.isdecimal():
        raise UserError(f"{launcher}: {name} is {text!r}, which is no number")
    return int(text)


def _text(name: str, launcher: str) -> str:
    if name not in os.environ:
        raise UserError(f"{launcher}: {name} is missing in the environment, which it should set")
    return os.environ[name]
