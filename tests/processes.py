"""Processes as fresh as a new Python, but with PyTorch and Detectron2 imported.

They are forked from one that each process of pytest starts when it first needs it, and that does
nothing but import. A new Python takes some four seconds to import the same, and a fork of pytest's
own process has what other tests left there: threads of autograd, settings, data sets.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from knet.training.launch import launch

CONTEXT = multiprocessing.get_context("forkserver")
# with what trainings import late
CONTEXT.set_forkserver_preload(
    ["pytest", "knet.training.trainer", "matplotlib.backends.backend_agg",
     "torch.utils.tensorboard"]
)  # fmt: skip


def call(function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """What a function of a module returns or raises in such a process.

    What it would spawn with multiprocessing is forked.
    """
    with ProcessPoolExecutor(1, mp_context=CONTEXT, initializer=_fork_rather_than_spawn) as pool:
        return pool.submit(function, *args, **keywords).result()


def call_in_two(main: Callable[..., Any], *args: Any) -> None:
    """`launch` a function of a module in two such processes, on the CPU."""
    call(launch, main, 2, on_gpu=False, args=args)


class Program:
    """A script that runs as `python -W ignore SCRIPT ARGUMENTS`, in a session of its own.

    What it would spawn is forked here, too.

    Args:
        folder: for the files of what it says.
        script, arguments: of the command line.
        environment: what is different there.

    Attributes:
        pid: of the process, of its group and session.
    """

    def __init__(
        self, folder: Path, script: Path, *arguments: object, **environment: object
    ) -> None:
        self._streams = [folder / "stdout", folder / "stderr"]
        for path in self._streams:
            path.touch()
        command = [str(script), *map(str, arguments)]
        changes = {name: str(value) for name, value in environment.items()}
        self._process = CONTEXT.Process(target=_run, args=(command, changes, self._streams))
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def out(self) -> str:
        """What it has said so far."""
        return self._streams[0].read_text("utf-8")

    @property
    def err(self) -> str:
        return self._streams[1].read_text("utf-8")

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def wait(self, seconds: float) -> int:
        """Its status, or minus the number of the signal that ended it."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"no end after {seconds} s\n{self.err}"
        return self._process.exitcode

    def kill(self) -> None:
        """End it and all that it has started."""
        self._process.kill()
        self._process.join()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _run(command: list[str], environment: dict[str, str], streams: list[Path]) -> None:
    os.setsid()
    os.environ.update(environment)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined]  # the main one
    _fork_rather_than_spawn()
    sys.argv = command
    sys.path.insert(0, os.path.dirname(command[0]))
    runpy.run_path(command[0], run_name="__main__")


def _fork_rather_than_spawn() -> None:
    multiprocessing.set_start_method("fork", force=True)  # as elsewhere on Linux
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment]
