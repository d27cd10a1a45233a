"""What is kept of images, on disk: results while there are more to come, and annotations."""

from __future__ import annotations

import base64
import os
import pickle
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from detectron2.utils import comm

from knet.files import whole_file

__all__ = ["KeptOnDisk", "Spool", "join_spools", "nameless_file"]

_BLOCK_BYTES = 8 << 20


def nameless_file(folder: str | os.PathLike[str] | None) -> IO[bytes]:
    """A file that whatever ends the process leaves nothing of.

    Args:
        folder: made if missing. The system's folder for temporary files, which None means, may be
            in memory.
    """
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
    return tempfile.TemporaryFile("w+b", dir=folder)


class Spool:
    """Lines or values of this process on disk, so that memory does not grow with their number.

    Args:
        folder: of the results, see `nameless_file`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._file = nameless_file(folder)

    def add(self, line: str) -> None:
        """Keep a line, which must not contain a line break."""
        self._file.write(line.encode("utf-8") + b"\n")

    def add_value(self, value: Any) -> None:
        """Keep something that can be pickled."""
        self._file.write(base64.b64encode(pickle.dumps(value)) + b"\n")

    def values(self) -> Iterator[Any]:
        """What `add_value` got, in all processes; in the first one alone. All must call this."""
        for line in self._gathered():
            yield pickle.loads(base64.b64decode(line))

    def write(self, path: str | os.PathLike[str], *, before: str = "[", after: str = "]") -> None:
        """`join_spools` of this one, between `before` and `after`."""
        join_spools(path, before, self, after)

    def _gathered(self) -> Iterator[str]:
        """The lines of all, in the first process, which holds one block at a time, of all."""
        self._file.seek(0)
        size = max(1, _BLOCK_BYTES // comm.get_world_size())
        while True:
            block = self._file.readlines(size)
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


class KeptOnDisk(Mapping[Any, Any]):
    """Values by their keys, which must be different; in memory are the keys.

    Args:
        items: keys and values that can be pickled.
        folder: see `nameless_file`.
    """

    def __init__(
        self, items: Iterable[tuple[Any, Any]], folder: str | os.PathLike[str] | None = None
    ) -> None:
        self._file = nameless_file(folder)
        self._lock = threading.Lock()
        self._places: dict[Any, int] = {}
        for key, value in items:
            self._places[key] = self._file.tell()
            self._file.write(pickle.dumps(value))
        self._file.flush()  # a process that is forked from this one might write it once more

    def __getitem__(self, key: Any) -> Any:
        place = self._places[key]
        with self._lock:
            self._file.seek(place)
            return pickle.load(self._file)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Any]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
