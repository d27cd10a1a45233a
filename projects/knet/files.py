"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

# part of the names of what is being written, so that left-overs of a kill can be told
UNFINISHED = ".unfinished-"
# machine and process that write it
_WRITER = re.compile(re.escape(UNFINISHED) + r"([0-9a-f]{6})-(\d{1,9})-[0-9a-f]{8}")
_DAY = 24 * 60 * 60


def unfinished_name(path: str | os.PathLike[str]) -> str:
    """A new name for what becomes `path`; it holds the process, and keeps the suffix.

    Some writers choose the format by the suffix.
    """
    target = Path(path)
    mark = f"{UNFINISHED}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return f"{target.stem[:40]}{mark}{target.suffix}"  # names have a limit


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to; what is there at the end of the block becomes `path`.

    The bytes are on the disk before the name is: after a kill, a crash of the machine or an error
    (a full disk) `path` is what it was before. The access rights are those of any new file. What a
    link points to is replaced, not the link; a device or pipe is written as it is.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path)
    if target.exists() and not target.is_file() and not target.is_dir():
        yield target
        return
    target = Path(os.path.realpath(target))
    unfinished = target.with_name(unfinished_name(target))
    try:
        yield unfinished
        _flush(unfinished)
        # writers such as safetensors choose narrower rights
        os.chmod(unfinished, 0o666 & ~_umask())
        os.replace(unfinished, target)
        _flush_folder(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside `path` to write into; at the end of the block it becomes `path`.

    After an error `path` is what it was before; after a kill that, or missing, but never a half.
    What killed processes left of this folder is removed.

    Raises:
        OSError: it cannot be written, or another process put a folder there at the same moment.
    """
    target = Path(os.path.realpath(path))
    stem = glob.escape(unfinished_name(target).partition(UNFINISHED)[0])
    remove_unfinished(target.parent, f"{stem}{UNFINISHED}*{glob.escape(target.suffix)}")
    fresh, old = (target.with_name(unfinished_name(target)) for _ in range(2))
    fresh.mkdir(parents=True)
    try:
        yield fresh
        _flush_below(fresh)
        with contextlib.suppress(FileNotFoundError):
            os.replace(target, old)
        os.replace(fresh, target)
        _flush_folder(target.parent)
    finally:
        _remove(fresh)
        _remove(old)


@contextlib.contextmanager
def one_at_a_time(path: str | os.PathLike[str], waiting: str, mend: str) -> Iterator[None]:
    """Keeps other processes out of the block for one path, whose folder is made.

    The lock is the system's, which releases it whatever ends the process; its file stays.

    Args:
        path: of what only one process may make.
        waiting: what is logged if another process is in the block.
        mend: what to do if the folder cannot be written.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{target}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("%s", waiting)
            lock.acquire()
    except OSError as error:
        raise OSError(
            f"{target.parent}: the cache cannot be written ({error.strerror or error}): {mend}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, whatever the locale.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8.
    """
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        raise ValueError(
            f"{path}: byte 0x{data[error.start]:02x} at position {error.start} (line "
            f"{before.count(10) + 1}) is not UTF-8 text: save the file as UTF-8"
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text, whole or not at all; OSError as `whole_file`."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes, whole or not at all; OSError as `whole_file`."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(data)


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = None) -> None:
    """Write JSON, whole or not at all; OSError as `whole_file`."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def remove_unfinished(folder: str | os.PathLike[str], pattern: str = f"*{UNFINISHED}*") -> None:
    """Remove what killed processes were writing.

    Left is what a process of this machine that still runs may be writing, an evaluation beside a
    training, say, and what another machine wrote to within a day.

    Args:
        folder: of the files.
        pattern: of their paths below it.
    """
    for path in list(Path(folder).glob(pattern)):
        with contextlib.suppress(FileNotFoundError):  # went with its folder, or is finished
            if not _is_being_written(path):
                _remove(path)


def _is_being_written(path: Path) -> bool:
    writer = _WRITER.search(path.name)
    if writer is None:
        return False  # named by an earlier version
    machine, process = writer[1], int(writer[2])
    if machine != _machine():
        return time.time() - path.stat().st_mtime < _DAY
    if process == os.getpid():
        return False  # of an earlier process: in a container its number is often the same
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_below(folder: Path) -> None:
    with os.scandir(folder) as entries:  # of millions, one at a time
        for entry in entries:
            (_flush_below if entry.is_dir() else _flush)(Path(entry.path))
    _flush_folder(folder)


def _flush_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # where the file system lets one ask for that
        _flush(path)
