"""Results on disk while there are more to come, joined into one file at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from detectron2.utils import comm

from knet.files import whole_file

__all__ = ["Spool"]

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

    def write(self, path: str, *, before: str = "[", after: str = "]") -> None:
        """Join the lines of all processes with commas. All of them must call this.

        Args:
            path: written by the first process, whole or not at all.
            before, after: what stands before and behind the lines.
        """
        if not comm.is_main_process():
            for _ in self._gathered():
                raise AssertionError("lines are gathered in the first process only")
            return
        with whole_file(path) as unfinished, open(unfinished, "w", encoding="utf-8") as f:
            f.write(before)
            for count, line in enumerate(self._gathered()):
                f.write(f", {line}" if count else line)
            f.write(after)

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
