"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "UNFINISHED",
    "read_text",
    "remove_unfinished",
    "whole_file",
    "write_json",
    "write_text",
]

# part of the names of files that are being written, so that left-overs of a kill can be told
UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to; what is there at the end of the block becomes `path`.

    The bytes are on the disk before the name is: after a kill, a crash of the machine or an error
    (a full disk) `path` is what it was before. The suffix is that of `path`, since some writers
    choose the format by it; the access rights are those of any new file.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path)
    unfinished = target.with_name(f"{target.stem}{UNFINISHED}{secrets.token_hex(4)}{target.suffix}")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        # writers such as safetensors choose narrower rights
        os.chmod(unfinished, 0o666 & ~_umask())
        os.replace(unfinished, target)
        _flush_folder(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


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


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = None) -> None:
    """Write JSON, whole or not at all; OSError as `whole_file`."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what a killed training was writing into its folder and its evaluations' folders."""
    for pattern in (f"*{UNFINISHED}*", f"inference*/**/*{UNFINISHED}*"):
        for path in Path(folder).glob(pattern):
            path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    """The name itself reaches the disk too, where the file system lets one ask for that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
