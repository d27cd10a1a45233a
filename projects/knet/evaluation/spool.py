"""Results on disk while there are more to come, joined into one file at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from detectron2.utils import comm

from knet.files import whole_file

__all__ = ["Spool", "join_spools"]

_BLOCK_BYTES = 8 << 20


class Spool:
    """JSON values of this process on disk, so that memory does not grow with their number.

    The file has no name: whatever ends the process, nothing is left of it. It lies in the folder
    of the results because the system's folder for temporary files may be in memory.

    Args:
        folder: made if missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        os.makedirs(folder, exist_ok=True)
        self._file = tempfile.TemporaryFile("w+b", dir=folder)  # noqa: SIM115 (closed with it)

    def add(self, line: str) -> None:
        """Keep a line, which must not contain a line break."""
        self._file.write(line.encode("utf-8") + b"\n")

    def write(self, path: str | os.PathLike[str], *, before: str = "[", after: str = "]") -> None:
        """`join_spools` of this one, between `before` and `after`."""
        join_spools(path, before, self, after)

    def _gathered(self) -> Iterator[str]:
        """The lines of all, in the first process, which holds one block of each at a time."""
        self._file.seek(0)
        while True:
            block = self._file.readlines(_BLOCK_BYTES)
            if not any(comm.all_gather(bool(block))):
                return
            for lines in comm.gather(block):
                for line in lines:
                    yield line.decode("utf-8").rstrip("\n")


def join_spools(path: str | os.PathLike[str], *parts: str | Spool) -> None:
    """Write texts, and between them the lines of all processes with commas. All must call this.

    Args:
        path: written by the first process, whole or not at all.
        parts: of the file, in their order.
    """
    spools = [part for part in parts if isinstance(part, Spool)]
    if not comm.is_main_process():
        for spool in spools:
            for _ in spool._gathered():
                raise AssertionError("lines are gathered in the first process only")
        return
    with whole_file(path) as unfinished, open(unfinished, "w", encoding="utf-8") as f:
        for part in parts:
            lines = [part] if isinstance(part, str) else part._gathered()
            for count, line in enumerate(lines):
                f.write(f", {line}" if count else line)
