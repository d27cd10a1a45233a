"""The group of a job's processes: it is joined, watched while the work lasts, and left."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from knet.errors import UserError, first_of, is_meant, one_line
from knet.training.places import Place, host_of
from knet.training.roll_call import RollCall
from knet.training.stop import Stopped

__all__ = ["in_group", "local_groups", "name_of", "require_shared"]

# seconds until the death of a process is seen, after the error that it causes in another one
DEATH_SEEN = 2.0
_names: list[str] = []


def in_group(
    place: Place, on_gpu: bool, main: Callable[..., Any], args: tuple, *, watched: bool
) -> Any:
    """`main(*args)` as one process of a group.

    Args:
        place: of this process.
        on_gpu: whether it gets a GPU.
        main, args: what it does.
        watched: whether the processes watch each other, as no launcher sees all of them.

    Raises:
        Stopped: a signal has ended the work.
        UserError: a GPU is missing, or the first process cannot be reached.
    """
    if on_gpu:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(
        backend, init_method=place.url, rank=place.rank, world_size=place.world_size
    )
    try:
        with local_groups(place.machine):
            if watched and place.world_size > 1:
                result = _watched(RollCall(host_of(place.url), list(_names)), main, args)
            else:
                result = main(*args)
    except Stopped:
        dist.destroy_process_group()
        raise  # other errors leave the group: its end might wait for processes that wait for this
    dist.destroy_process_group()
    return result


def _watched(roll_call: RollCall, main: Callable[..., Any], args: tuple) -> Any:
    try:
        result = main(*args)
    except Stopped as stop:
        # those that the signal has not reached do not wait for this one
        roll_call.fail(f"was stopped by {stop.signal_name}", stop.status)
        raise
    except Exception as error:
        loss = None if is_meant(error) else roll_call.loss(DEATH_SEEN)
        if loss is not None:  # the error followed from it
            roll_call.end(loss)
        roll_call.fail(f"failed: {one_line(error)}", 2 if is_meant(error) else 1)
        raise
    roll_call.leave()
    return result


@contextlib.contextmanager
def local_groups(machine: int) -> Iterator[None]:
    """Within, Detectron2 knows the processes of this machine, and `name_of` all of them.

    Args:
        machine: its number among those of the group.
    """
    told = comm.all_gather((machine, socket.gethostname(), os.getpid()))
    count = len(told)
    _names[:] = [
        f"process {rank} of {count} (numbered from 0; {host}, id {pid})"
        for rank, (_, host, pid) in enumerate(told)
    ]
    machines = [number for number, _, _ in told]
    ranks = [[r for r in range(count) if machines[r] == m] for m in dict.fromkeys(machines)]
    # which Detectron2 v0.6 lets nobody else tell
    comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups_by_enumeration(ranks)
    comm.synchronize()
    try:
        yield
    finally:
        # a group and its threads end with the last reference; else they would meet an interpreter
        # that is ending
        comm._LOCAL_PROCESS_GROUP = None
        comm._get_global_gloo_group.cache_clear()
        _names.clear()


def name_of(rank: int) -> str:
    """A process of the group for messages, with machine and process id; empty without a group."""
    return _names[rank] if _names else ""


def require_shared(folder: str) -> None:
    """See that all machines of the group have the same folder; all processes must call this.

    Raises:
        UserError: naming processes for which it is another one.
    """
    if comm.get_world_size() == comm.get_local_size():
        return
    mark = comm.all_gather(f".shared-{secrets.token_hex(8)}")[0]
    path = Path(folder, mark)
    if comm.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    comm.synchronize()
    seen = comm.all_gather(path.is_file())
    if comm.is_main_process():
        path.unlink()
    apart = [name_of(rank) for rank, found in enumerate(seen) if not found]
    if apart:
        raise UserError(
            f"OUTPUT_DIR {folder} is not the same folder on all machines ({first_of(apart, 3)} "
            f"cannot see what {name_of(0)} writes): set it to one on storage that they share"
        )
