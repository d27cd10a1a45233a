"""Pictures that end the process which reads them: a note says which one a shard's writer is at.

A decoder that crashes, or memory that the system takes back with the whole process, gives no error
to catch. What is known afterwards is the note, which only a process that was killed leaves.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO

from knet.files import write_text

__all__ = ["ENDS", "Attempt", "count_start", "remove_notes", "where_it_ended"]

ENDS = 2  # of the process at one picture: then it goes without results
_SUFFIX, _STARTS = ".next", ".starts"
_WIDTH = 12  # digits of the picture that is next


class Attempt:
    """Writing a shard; use it in a ``with`` block.

    Args:
        shard: the file to be.
        call: of whom the notes are. A loop, None, takes any end of its process for the picture's.
            Ray's workers take those of their own call: they end with it, and that may be for
            another reason.

    Attributes:
        given_up: positions of the pictures in the shard that have ended the process `ENDS` times.
    """

    def __init__(self, shard: Path, call: str | None = None) -> None:
        self._path, self._call = shard.with_suffix(_SUFFIX), call
        self._file: IO[bytes] | None = None
        self._kept = False
        self.given_up: set[int] = set()

    def __enter__(self) -> Attempt:
        ends: dict[int, int] = {}
        if self._path.exists():
            call, ends, picture = _read(self._path)
            if call != self._call:
                ends = {}
            elif picture >= 0:
                ends[picture] = ends.get(picture, 0) + 1
        self.given_up = {picture for picture, count in ends.items() if count >= ENDS}
        self._kept = bool(ends)
        write_text(
            self._path, f"{-1:{_WIDTH}d}\n{json.dumps({'call': self._call, 'ends': ends})}\n"
        )
        self._file = open(self._path, "r+b", buffering=0)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.begin(-1)
        assert self._file is not None
        self._file.close()
        if kind is None or not self._kept:
            self._path.unlink(missing_ok=True)

    def begin(self, picture: int) -> None:
        """Note which picture is next, by its position in the shard; -1 for none."""
        assert self._file is not None
        self._file.seek(0)
        self._file.write(f"{picture:{_WIDTH}d}".encode())


def where_it_ended(folder: Path, call: str) -> list[tuple[int, int]]:
    """(shard, position) of the pictures that workers of a call have ended at, or are at."""
    found = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        whose, ends, picture = _read(path)
        if whose == call:
            shard = int(path.stem.rpartition("-")[2])
            found += [(shard, k) for k in sorted({*ends, picture} - {-1})]
    return found


def count_start(folder: Path, call: str) -> int:
    """Note that a worker of a call starts; how many have, this one too."""
    with open(folder / f"{call}{_STARTS}", "ab") as file:
        file.write(b"x")
    return os.path.getsize(file.name)


def remove_notes(folder: Path) -> None:
    """Of a run that is complete."""
    for suffix in (_SUFFIX, _STARTS):
        for path in folder.glob(f"*{suffix}"):
            path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[str | None, dict[int, int], int]:
    picture, about = path.read_text(encoding="utf-8").split("\n", 1)
    content = json.loads(about)
    return content["call"], {int(k): n for k, n in content["ends"].items()}, int(picture)
