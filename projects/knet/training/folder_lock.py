"""One training a folder: a second one would overwrite its checkpoints."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import IO

from knet.errors import UserError

__all__ = ["folder_lock"]

logger = logging.getLogger(__name__)

LOCK_FILE = ".training.lock"
# folders that processes have locked; a process that is forked from one has not
_held: set[tuple[int, str]] = set()


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[None]:
    """Keep other trainings out of a folder, which is made if missing.

    The lock is the operating system's, which releases it whatever ends the process; the file stays.
    It is one of `lockf`, not of `flock`: loader workers that outlive a killed training for seconds
    do not hold it, and NFS knows it. A process that has it may take it again.

    Raises:
        UserError: another process trains there.
    """
    os.makedirs(folder, exist_ok=True)
    key = (os.getpid(), os.path.realpath(folder))
    if key in _held:  # closing the file a second time would end the lock
        yield
        return
    with open(os.path.join(folder, LOCK_FILE), "a+", encoding="utf-8") as file:
        reason = _lock(file, folder)
        if reason:
            logger.warning(
                "%s: no locks here (%s): see to it that no other training writes there",
                folder,
                reason,
            )
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        _held.add(key)
        try:
            yield
        finally:
            _held.remove(key)


def _lock(file: IO[str], folder: str) -> str | None:
    """Lock a file; returns why that is not possible here, if it is not. UserError: it is locked."""
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError as error:  # on Windows
        return str(error)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return error.strerror
        file.seek(0)
        holder = file.read().strip() or "a process that has just started"
        raise UserError(
            f"{folder}: another training writes there ({holder}): wait for it, stop it, or choose "
            "another OUTPUT_DIR"
        ) from None
    return None
