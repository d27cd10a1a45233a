"""Cases in forked processes: one that crashes, hangs or takes memory is told from the others."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from selectors import EVENT_READ, DefaultSelector
from typing import Any

__all__ = ["OUTCOMES", "Result", "run_cases"]

OUTCOMES = ("named", "accepted", "unnamed", "crash", "hang", "memory", "silent")
SECONDS = 120  # of a machine with a lot else to do
_MORE_MEMORY = 2 << 30
# what can be asked for without being used
_MORE_ADDRESSES = 4 << 30


@dataclass(frozen=True)
class Result:
    """What came of a case.

    Attributes:
        door, number: of the case.
        outcome: one of `OUTCOMES`.
        what: the damage, and the error if there was one.
    """

    door: str
    number: int
    outcome: str
    what: str


class _Worker:
    """A forked process that runs cases in their order and tells what came of each."""

    def __init__(self, cases: Sequence[Any], run: Callable[[Any], tuple[str, str]]) -> None:
        self.cases, self._rest = list(cases), b""
        self.results: list[tuple[str, str]] = []
        self.pipe, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if not self.process:
            status = 1
            with contextlib.suppress(BaseException):
                os.close(self.pipe)
                _serve(self.cases, run, writing)
                status = 0
            os._exit(status)
        os.close(writing)

    def read(self) -> bool:
        """Take in what it says; False once it has ended."""
        data = os.read(self.pipe, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.results.append(tuple(json.loads(line)))
        return bool(data)

    def end(self) -> list[Any]:
        """The cases that it left undone; the one that ended it is among the results."""
        os.close(self.pipe)
        _, status = os.waitpid(self.process, 0)
        if len(self.results) < len(self.cases) and status:
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            hung = number == signal.SIGALRM
            what = f"{SECONDS} s" if hung else f"ended with signal {number}, status {status}"
            self.results.append(("hang" if hung else "crash", what))
        return self.cases[len(self.results) :]


def _serve(cases: Sequence[Any], run: Callable[[Any], tuple[str, str]], writing: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    faulthandler.disable()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends even what is stuck in C
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with open("/proc/self/statm") as file:
        addresses = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = addresses + _MORE_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = _peak() + _MORE_MEMORY
    for case in cases:
        signal.alarm(SECONDS)
        try:
            outcome, what = run(case)
        except MemoryError as error:
            outcome, what = "memory", repr(error)
        signal.alarm(0)
        over = _peak() > most
        if over:
            outcome = "memory"
        os.write(writing, json.dumps([outcome, what[:1000]]).encode() + b"\n")
        if over:  # the peak stays: a fresh process does the rest
            return


def _peak() -> int:
    """Bytes; they only grow."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_cases(
    door: str, numbers: Sequence[int], run: Callable[[int], tuple[str, str]], *, processes: int
) -> Iterator[Result]:
    """Run cases in forked processes.

    Args:
        door: what the results call it.
        numbers: of the cases, which `run` turns into an outcome and words.
        processes: at a time.
    """
    chunk = max(1, min(25, len(numbers) // processes))
    waiting = [list(numbers[i : i + chunk]) for i in range(0, len(numbers), chunk)]
    with DefaultSelector() as selector:
        running = 0
        while waiting or running:
            while waiting and running < processes:
                worker = _Worker(waiting.pop(0), run)
                selector.register(worker.pipe, EVENT_READ, worker)
                running += 1
            for key, _ in selector.select():
                worker = key.data
                if worker.read():
                    continue
                selector.unregister(worker.pipe)
                running -= 1
                left = worker.end()
                if left:
                    waiting.insert(0, left)
                for number, (outcome, what) in zip(worker.cases, worker.results):
                    yield Result(door, number, outcome, what)
