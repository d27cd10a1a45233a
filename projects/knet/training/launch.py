"""Processes of one training, on GPUs or on CPUs alone, which end together."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from knet.errors import UserError, is_meant, one_line
from knet.training.stop import Stopped, hangups

__all__ = ["launch"]

# seconds for the others to end, when one has stopped or the launcher is gone
_GRACE = 60.0
# seconds until the death of a process is seen, after the error that it causes in another one
_DEATH_SEEN = 2.0
_STOPPED = Stopped(signal.SIGTERM).code


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

    SIGTERM, SIGINT and SIGHUP to this process reach all of them as SIGTERM, and a second SIGINT
    kills them. An error in one process, or its death, ends the others; so does the end of this one.

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
        RuntimeError: another exception of a process, with its stack trace.
        SystemExit: with 128 + its number after a signal, to this process (`Stopped`) or one of
            those; or the status of a process that has ended with another one than 0.
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
        _follow(os.getppid())
        return _in_group("env://", on_gpu, main, args)
    if num_machines * num_processes == 1:
        return main(*args)
    if dist_url == "auto":
        if num_machines > 1:
            raise UserError("--dist-url must name the first machine when there are several")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    if not on_gpu:
        # each process would start a thread a core
        threads = max(1, (os.cpu_count() or 1) // num_processes)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    sizes = {"WORLD_SIZE": num_machines * num_processes, "LOCAL_WORLD_SIZE": num_processes}
    places = [
        {**sizes, "RANK": machine_rank * num_processes + i, "LOCAL_RANK": i}
        for i in range(num_processes)
    ]
    _run_all(places, (dist_url, on_gpu, main, args))
    return None


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _in_group(url: str, on_gpu: bool, main: Callable[..., Any], args: tuple) -> Any:
    """`main(*args)` as one process of a group; the environment tells its place, as of torchrun."""
    rank, world_size, local_rank, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    if on_gpu:
        torch.cuda.set_device(local_rank)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, init_method=url, rank=rank, world_size=world_size)
    # the processes of this machine, which Detectron2 v0.6 lets nobody else tell
    comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups(local_size)
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


def _run_all(places: Sequence[Mapping[str, int]], work: tuple) -> None:
    """Run `_in_group(*work)` in a new process for each environment; raises as `launch`."""
    context = multiprocessing.get_context("spawn")
    reports, sender = context.Pipe(duplex=False)
    shared = (os.getpid(), sender, context.Lock(), work)
    processes = [context.Process(target=_run, args=(i, p, *shared)) for i, p in enumerate(places)]
    try:
        with _passing_signals_on(processes) as received:
            _wait_for_all(processes, reports, received)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _run(
    index: int, place: Mapping[str, int], parent: int, sender: Connection, sending: Any, work: tuple
) -> None:
    _follow(parent)
    os.environ.update({name: str(number) for name, number in place.items()})
    try:
        _in_group(*work)
    except Exception as error:
        with sending:
            sender.send((index, one_line(error), traceback.format_exc(), is_meant(error)))
        logging.shutdown()
        sys.stdout.flush()
        # without the end of the process group, for which it might wait
        os._exit(1)


def _follow(parent: int) -> None:
    """Have this process end when its parent has: as SIGTERM does, and by force if that fails."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="follow", daemon=True).start()


@contextlib.contextmanager
def _passing_signals_on(processes: list[Any]) -> Iterator[list[int]]:
    """Start the processes; the list holds the signals that came."""
    received: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        kill = number == signal.SIGINT in received
        received.append(number)
        for process in processes:
            if process.pid is not None:
                process.kill() if kill else process.terminate()

    on_main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    numbers = [signal.SIGTERM, signal.SIGINT, *hangups()] if on_main else []
    # they are born with the last ones ignored: a terminal's reach them too, and the launcher passes
    # on. Where SIGINT was ignored before, in the background of a script, it counts as well
    before: dict[int, Any] = {n: signal.signal(n, signal.SIG_IGN) for n in numbers[1:]}
    try:
        for process in processes:
            process.start()
        for each in numbers:
            previous = signal.signal(each, pass_on)
            before.setdefault(each, previous)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_all(processes: list[Any], reports: Connection, received: list[int]) -> None:
    running = {process.sentinel: i for i, process in enumerate(processes)}
    deadline = None
    while running:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = wait([reports, *running], left)
        if not ready:
            break
        if reports in ready:
            index, text, trace, meant = reports.recv()
            if meant:
                raise UserError(text) from RuntimeError(f"in process {index}\n{trace}")
            # it may follow from the end of another process
            others = [sentinel for sentinel, i in running.items() if i != index]
            for sentinel in wait(others, _DEATH_SEEN):
                # its status comes after its files are closed, which is what has been seen
                processes[running[sentinel]].join()
            for i, process in enumerate(processes):
                if process.exitcode is not None and process.exitcode < 0 and not received:
                    _raise_status(i, len(processes), process.exitcode)
            if deadline is None:
                raise RuntimeError(f"process {index} failed:\n{trace}")
            continue
        for sentinel in ready:
            index = running.pop(sentinel)
            processes[index].join()
            status = processes[index].exitcode
            if status and not received and status != _STOPPED:
                _raise_status(index, len(processes), status)
            if status:
                deadline = time.monotonic() + _GRACE
    if deadline is not None:
        raise Stopped(received[-1] if received else signal.SIGTERM)


def _raise_status(index: int, count: int, status: int) -> None:
    if status < 0:
        how, status = f"was ended by {signal.Signals(-status).name}", 128 - status
    else:
        how = f"ended with status {status}"
    print(
        f"process {index} of {count} (numbered from 0) {how}; the others were stopped. "
        "A training goes on from its last checkpoint with --resume",
        file=sys.stderr,
    )
    raise SystemExit(status)
