"""Processes of one job that end together, whatever ends one of them or their launcher."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from knet.errors import MEANT, UserError, one_line
from knet.training.stop import Stopped, hangups

__all__ = ["follow_parent", "run_processes"]

# seconds for the others to end, when one has stopped or the launcher is gone
_GRACE = 60.0
# seconds until the death of a process is seen, after the error that it causes in another one
_DEATH_SEEN = 2.0
_STOPPED = Stopped(signal.SIGTERM).code


def follow_parent(parent: int) -> None:
    """Have this process end when its parent has: as SIGTERM does, and by force if that fails."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="follow_parent", daemon=True).start()


def run_processes(target: Callable[..., Any], arguments: Sequence[tuple]) -> None:
    """Run `target(*arguments[i])` in one new process each.

    SIGTERM, SIGINT and SIGHUP to this process reach all of them as SIGTERM, and a second SIGINT
    kills them.
    An error in one process, or its death, ends the others.

    Raises:
        UserError: what a process raised, if it is meant for the user.
        RuntimeError: any other exception of a process, with its stack trace.
        SystemExit: with 128 + its number after a signal, to this process (`Stopped`) or one of
            those; or the status of a process that has ended with another one than 0.
    """
    context = multiprocessing.get_context("spawn")
    reports, sender = context.Pipe(duplex=False)
    sending = context.Lock()
    processes = [
        context.Process(target=_run, args=(os.getpid(), i, sender, sending, target, own))
        for i, own in enumerate(arguments)
    ]
    try:
        with _passing_signals_on(processes) as received:
            _wait_for_all(processes, reports, received)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _run(
    launcher: int,
    index: int,
    sender: Connection,
    sending: Any,
    target: Callable[..., Any],
    arguments: tuple,
) -> None:
    follow_parent(launcher)
    try:
        target(*arguments)
    except Exception as error:
        with sending:
            sender.send((index, one_line(error), traceback.format_exc(), isinstance(error, MEANT)))
        logging.shutdown()
        sys.stdout.flush()
        # without the end of the process group, for which it might wait
        os._exit(1)


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

    if threading.current_thread() is not threading.main_thread():
        for process in processes:
            process.start()
        yield received
        return
    # they are born with these ignored: a terminal's reach them too, and the launcher passes on.
    # Where SIGINT was ignored before, in the background of a script, it counts as well
    passed_on = [signal.SIGINT, *hangups()]
    before: dict[int, Any] = {n: signal.signal(n, signal.SIG_IGN) for n in passed_on}
    try:
        for process in processes:
            process.start()
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, pass_on)
        for each in passed_on:
            signal.signal(each, pass_on)
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
