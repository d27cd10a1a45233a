"""One training a folder: a second one would overwrite its checkpoints."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator

from knet.errors import UserError

__all__ = ["folder_lock"]

logger = logging.getLogger(__name__)

LOCK_FILE = ".training.lock"


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[None]:
    """Keep other trainings out of a folder, which is made if missing.

    The lock is the operating system's, which releases it whatever ends the process; the file stays.
    It is one of `lockf`, not of `flock`: loader workers that outlive a killed training for seconds
    do not hold it, and NFS knows it.

    Raises:
        UserError: another process trains there.
    """
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, LOCK_FILE), "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read().strip() or "a process that has just started"
                raise UserError(
                    f"{folder}: another training writes there ({holder}): wait for it, stop it, or "
                    "choose another OUTPUT_DIR"
                ) from None
            logger.warning(
                "%s: this file system has no locks (%s): see to it that no other training writes "
                "there", folder, error.strerror,
            )  # fmt: skip
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
