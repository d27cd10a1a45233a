"""How a training ends without loss: after a step, by a signal, and alone in its folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from knet.errors import UserError

logger = logging.getLogger(__name__)

_LOCK_FILE = ".training.lock"
# folders that processes have locked; a process that is forked from one has not
_locked: set[tuple[int, str]] = set()


class Stopped(SystemExit):
    """A signal has ended the training; the exit status is 128 + its number, as in a shell.

    Args:
        number: of the signal.
        rank: of the process that got it.
    """

    def __init__(self, number: int, rank: int | None = None) -> None:
        super().__init__(128 + number)
        self.number = number
        self.rank = comm.get_rank() if rank is None else rank

    @property
    def status(self) -> int:
        """The exit status."""
        return 128 + self.number

    @property
    def signal_name(self) -> str:
        """`SIGTERM`."""
        return signal.Signals(self.number).name


def optional_signals() -> list[signal.Signals]:
    """SIGHUP of a closed terminal and SIGUSR1 of a scheduler that wants the machine back.

    Not those that are ignored, or unknown as on Windows.
    """
    found = [getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1")]
    return [n for n in found if n is not None and signal.getsignal(n) != signal.SIG_IGN]


class StopSignals:
    """Within the block signals are noted in `received`, for the end of the step.

    They are SIGTERM, SIGINT, SIGHUP and SIGUSR1. A second SIGINT (Ctrl-C) ends the process at once.
    SIGHUP, of a terminal that closes, stays ignored if it was (`nohup`). In a process of
    `knet.training.launch` only SIGTERM comes, since the launcher passes the others on.
    """

    def __init__(self) -> None:
        self.received = 0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        global _current
        _current = self
        self._owner = os.getpid()
        if threading.current_thread() is threading.main_thread():
            spawned = multiprocessing.parent_process() is not None
            numbers = (
                [signal.SIGTERM]
                if spawned
                else [signal.SIGTERM, signal.SIGINT, *optional_signals()]
            )
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # a forked worker; Ctrl-C, which reaches the whole group, is for its parent
            signal.signal(number, signal.SIG_DFL)
            if number == signal.SIGTERM:
                os.kill(os.getpid(), number)
            return
        again, self.received = self.received, number
        if again and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._owner, number)
        if self._at_once:
            raise Stopped(number)
        if not again and comm.is_main_process():
            more = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            # no print: it may be just what has been interrupted
            text = f"{signal.Signals(number).name}: stops with a checkpoint after this step{more}\n"
            with contextlib.suppress(OSError):  # the terminal is gone
                os.write(2, text.encode())

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, `Stopped` is raised as soon as a signal comes, or has come before."""
        self._at_once = True
        try:
            self._raise()
            yield
            self._raise()  # it may have been raised where exceptions are ignored
        except Exception:
            self._raise()  # such as that another process is gone, for the same reason
            raise
        finally:
            self._at_once = False

    def _raise(self) -> None:
        if self.received:
            raise Stopped(self.received)


_current: StopSignals | None = None


def stop_at_once() -> contextlib.AbstractContextManager[None]:
    """`at_once` of the training that runs in this process; without one nothing happens."""
    return contextlib.nullcontext() if _current is None else _current.at_once()


def spare_workers(loader: Any) -> Any:
    """Have the worker processes of a `DataLoader` obey SIGTERM of their parent alone, in place.

    Whoever ends a job may send it (a closing terminal: SIGHUP) to all of its processes at once, but
    the step that runs needs its batch.
    """
    loader.worker_init_fn = functools.partial(_obey_parent, loader.worker_init_fn)
    return loader


def _obey_parent(init: Callable[[int], None] | None, worker: int) -> None:
    if init is not None:
        init(worker)
    for number in optional_signals():
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS: the worker dies, and the step with it
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def watch() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=watch, name="obey_parent", daemon=True).start()


class Agreement:
    """Lets all processes know after the same step that one of them was asked to stop.

    The processes speak over the CPU, and a step's question is answered after the next step, when
    the answer has long been there: nobody waits. All must create it at the same time.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo") if comm.get_world_size() > 1 else None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def stop(self, received: int) -> Stopped | None:
        """What ends the training after this step, if anything; all must call it every step.

        Args:
            received: the signal that this process got, or 0.
        """
        rank, count = comm.get_rank(), comm.get_world_size()
        if self._group is None:
            return Stopped(received) if received else None
        answer = 0
        if self._asked is not None:
            work, asked = self._asked
            work.wait()
            answer = int(asked)
        if not answer:
            value = torch.tensor([count * received + rank if received else 0])
            work = dist.all_reduce(value, dist.ReduceOp.MAX, group=self._group, async_op=True)
            self._asked = (work, value)
        return Stopped(*divmod(answer, count)) if answer else None

    def wait(self) -> None:
        """Until all processes are here."""
        if self._group is not None:
            dist.barrier(group=self._group)


@contextlib.contextmanager
def folder_lock(
    folder: str, *, work: str = "training", place: str = "OUTPUT_DIR"
) -> Iterator[None]:
    """Keep other trainings, which would overwrite the checkpoints, out of a folder; makes it.

    The lock is the operating system's, which releases it whatever ends the process; the file stays.
    It is one of `lockf`, not of `flock`: loader workers that outlive a killed training for seconds
    do not hold it, and NFS knows it. A process that has it may take it again.

    Args:
        folder: of the files.
        work, place: what is done there and what names the folder, for messages.

    Raises:
        UserError: another process trains there.
    """
    os.makedirs(folder, exist_ok=True)
    key = (os.getpid(), os.path.realpath(folder))
    if key in _locked:  # closing the file a second time would end the lock
        yield
        return
    with open(os.path.join(folder, _LOCK_FILE), "a+", encoding="utf-8") as file:
        try:
            fcntl = importlib.import_module("fcntl")  # not on Windows
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ImportError, OSError) as error:
            if getattr(error, "errno", None) in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read().strip() or "a process that has just started"
                raise UserError(
                    f"{folder}: another {work} writes there ({holder}): wait for it, stop it, or "
                    f"choose another {place}"
                ) from None
            logger.warning(
                "%s: no locks here (%s): see to it that no other %s writes there",
                *(folder, getattr(error, "strerror", None) or error, work),
            )
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        _locked.add(key)
        try:
            yield
        finally:
            _locked.remove(key)
