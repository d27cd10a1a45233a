"""Start training on one or several processes, with GPUs or on CPUs alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from knet.errors import UserError
from knet.training.processes import follow_parent, run_processes
from knet.training.stop import Stopped


def launch(
    main: Callable[..., Any],
    num_processes: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    on_gpu: bool,
    args: tuple = (),
) -> Any:
    """Call `main(*args)` in every process of a distributed job.

    Detectron2's own launcher needs CUDA; this one uses gloo without it. Under `torchrun`, the
    processes exist already and the other arguments but `main`, `on_gpu` and `args` are ignored.
    The processes end with each other and with this one, see `knet.training.processes`.

    Args:
        main: what to run; must be importable.
        num_processes: on each machine; one a GPU.
        num_machines, machine_rank: as in Detectron2.
        dist_url: where the processes meet; "auto" picks a free port of this machine.
        on_gpu: whether each process gets a GPU.
        args: of `main`.

    Returns:
        What `main` returns if this process runs it itself, else None.

    Raises:
        UserError: fewer GPUs than processes; several machines without an address; whatever
            a process raised that is meant for the user.
        RuntimeError: another exception of a process.
        SystemExit: a process, or this one, was ended.
    """
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if under_torchrun:
        num_processes = int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpu and torch.cuda.device_count() < num_processes:
        raise UserError(
            f"--num-gpus {num_processes}, but this machine has {torch.cuda.device_count()}: "
            "lower it, or train on the CPU with MODEL.DEVICE cpu"
        )
    if under_torchrun:
        follow_parent(os.getppid())
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ["LOCAL_RANK"])
        return _run(local_rank, rank, world_size, num_processes, "env://", on_gpu, main, args)
    world_size = num_machines * num_processes
    if world_size == 1:
        return main(*args)
    if dist_url == "auto":
        if num_machines > 1:
            raise UserError("--dist-url must name the first machine when there are several")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    if not on_gpu:
        # each process would start a thread a core
        os.environ.setdefault(
            "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes))
        )
    first = machine_rank * num_processes
    rest = (world_size, num_processes, dist_url, on_gpu, main, args)
    run_processes(_run, [(i, first + i, *rest) for i in range(num_processes)])
    return None


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _run(
    local_rank: int,
    rank: int,
    world_size: int,
    num_processes: int,
    url: str,
    on_gpu: bool,
    main: Callable[..., Any],
    args: tuple,
) -> Any:
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=url, rank=rank, world_size=world_size
    )
    _create_local_group(num_processes, world_size, rank)
    comm.synchronize()
    try:
        result = main(*args)
    except Stopped:
        _leave_group()
        raise  # other errors leave the group: its end might wait for processes that wait for this
    _leave_group()
    return result


def _leave_group() -> None:
    """End the group and its threads, which would else meet an interpreter that is ending.

    They end with the last reference, and Detectron2 keeps some.
    """
    dist.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()


def _create_local_group(num_processes: int, world_size: int, rank: int) -> None:
    """Tell Detectron2 which processes share a machine."""
    if hasattr(comm, "create_local_process_group"):  # after v0.6
        comm.create_local_process_group(num_processes)
        return
    for start in range(0, world_size, num_processes):
        ranks = list(range(start, start + num_processes))
        group = dist.new_group(ranks)
        if rank in ranks:
            comm._LOCAL_PROCESS_GROUP = group
