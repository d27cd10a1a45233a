"""Processes of one training, on GPUs or on CPUs alone, which end together."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from knet.errors import UserError, is_meant, one_line
from knet.training.group import DEATH_SEEN, in_group
from knet.training.places import TORCHRUN, Place, place_of_launcher, tasks_without_srun
from knet.training.roll_call import LOST
from knet.training.stop import Stopped, optional_signals

__all__ = ["launch"]

# seconds for the others to end, when one has stopped or the launcher is gone
_GRACE = 60.0
# of processes that follow another one, which is told
_FOLLOWED = (Stopped(signal.SIGTERM, 0).status, LOST)


def launch(
    main: Callable[..., Any],
    num_processes: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    on_gpu: bool,
    args: tuple = (),
    fork: bool = False,
) -> Any:
    """Call `main(*args)` in every process of a distributed job.

    Detectron2's own launcher needs CUDA; this one uses gloo without it. Under `torchrun`, and in a
    step of several tasks under SLURM's `srun`, the processes exist already and the other arguments
    but `main`, `on_gpu` and `args` are ignored.

    SIGTERM, SIGINT, SIGHUP and SIGUSR1 to this process reach all of them as SIGTERM, and a second
    SIGINT kills them. An error in one process, or its death, ends the others; so does the end of
    this one. On other machines, and of other launchers, it does so within a minute.

    Args:
        main: what to run; must be importable.
        num_processes: on each machine; one a GPU.
        num_machines, machine_rank: as in Detectron2.
        dist_url: where the processes meet; "auto" picks a free port of this machine.
        on_gpu: whether each process gets a GPU.
        args: of `main`.
        fork: promises that torch has computed nothing here with more than one thread, after which a
            forked process may hang. On Linux without GPUs, processes then share what this one has
            imported, some 400 MB; else each starts afresh.

    Returns:
        What `main` returns if this process runs it itself, else None.

    Raises:
        UserError: fewer GPUs than processes; several machines without an address; whatever
            a process raised that is meant for the user.
        RuntimeError: another exception of a process, with its stack trace.
        SystemExit: with 128 + its number after a signal, to this process (`Stopped`) or one of
            those; with 75 if a process of another machine is gone; or the status of a process that
            has ended with another one than 0.
    """
    place = place_of_launcher()
    if place is not None:
        num_processes = place.local_size
    gpus = torch.cuda.device_count() if on_gpu else 0
    one_each = gpus == 1 and place is not None and not place.shares_gpus()
    if on_gpu and gpus < num_processes and not one_each:
        raise UserError(
            f"--num-gpus {num_processes}, but this machine has {gpus}: "
            "lower it, or train on the CPU with MODEL.DEVICE cpu"
        )
    if place is not None:
        if place.launcher == TORCHRUN:
            _follow(os.getppid())
        return in_group(place, on_gpu, main, args, watched=True)
    total, tasks = num_machines * num_processes, tasks_without_srun()
    if total < tasks:
        print(
            f"SLURM has given this job {tasks} tasks, of which {total} will work: srun in front of "
            "the command starts it as each of them",
            file=sys.stderr,
        )
    if total == 1:
        return main(*args)
    if dist_url == "auto":
        if num_machines > 1:
            raise UserError("--dist-url must name the first machine when there are several")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    threads = 0
    if not on_gpu:
        # each process would start a thread a core
        share = max(1, (os.cpu_count() or 1) // num_processes)
        threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else share
        os.environ.setdefault("OMP_NUM_THREADS", str(share))
    first = machine_rank * num_processes
    places = [
        Place(first + i, total, i, num_processes, machine_rank, dist_url)
        for i in range(num_processes)
    ]
    forked = fork and not on_gpu and sys.platform == "linux"
    _run_all(places, (on_gpu, main, args), num_machines > 1, threads, forked)
    return None


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _run_all(
    places: Sequence[Place], work: tuple, watched: bool, threads: int, forked: bool
) -> None:
    """Run `in_group(place, *work)` in a new process for each place; raises as `launch`."""
    context: Any = multiprocessing.get_context("fork" if forked else "spawn")
    reports, sender = context.Pipe(duplex=False)
    shared = (os.getpid(), sender, context.Lock(), work, watched, threads)
    if forked:
        gc.freeze()  # a collection would write to, and so copy, what is shared
    processes = [context.Process(target=_run, args=(i, p, *shared)) for i, p in enumerate(places)]
    try:
        with _passing_signals_on(processes) as received:
            _wait_for_all(processes, reports, received)
    finally:
        gc.unfreeze()
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _run(
    index: int,
    place: Place,
    parent: int,
    sender: Connection,
    sending: Any,
    work: tuple,
    watched: bool,
    threads: int,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    _follow(parent)
    os.environ.update(place.environment())
    try:
        in_group(place, *work, watched=watched)
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
    numbers = [signal.SIGTERM, signal.SIGINT, *optional_signals()] if on_main else []
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
            for sentinel in wait(others, DEATH_SEEN):
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
            if status and not received and status not in _FOLLOWED:
                _raise_status(index, len(processes), status)
            if status == LOST and not received:
                raise SystemExit(LOST)  # the process has said whom it follows
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
