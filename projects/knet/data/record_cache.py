"""The records of a large data set, read and checked once a machine, then mapped by every process.

What is kept is the whole `Scan`, with every defect: what happens to them is decided at each start,
with the same words as without this.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from knet.data.defects import Defect
from knet.data.on_error import Scan
from knet.data.progress import progressing
from knet.data.records import NotKeptError, StoredFile, StoredItems, StoredRecords, write_file
from knet.files import one_at_a_time, remove_unfinished, whole_file

logger = logging.getLogger(__name__)

_VERSION = 1  # of what is read and how it is checked
# annotations of fewer bytes are read in a second or two, and take little memory
_LARGE = 32 << 20
# a data set of more pictures is large, too, if their files have to be opened
_MANY = 20_000
_SAMPLES = 16  # places of a file at which its content is looked at
_SAMPLE_BYTES = 1 << 12
_SUFFIX = ".records"

FOLDER_KEY = "DATASETS.RECORDS_FOLDER"


@dataclass(frozen=True)
class Source:
    """What the records of a data set depend on.

    Attributes:
        files: annotations, whose content is sampled.
        opened: further files that are opened to read the records; size and time are looked at.
        listed: names that were found in folders and stand in the records.
        settings: what the data set was registered with, as JSON can hold it.
    """

    files: Sequence[str] = ()
    opened: Sequence[str] = ()
    listed: Sequence[str] = ()
    settings: Any = None

    @property
    def is_large(self) -> bool:
        """Whether reading it takes more than a moment."""
        size = sum(os.path.getsize(file) for file in self.files if os.path.isfile(file))
        return size >= _LARGE or len(self.opened) >= _MANY

    def digests(self) -> tuple[str, str]:
        """Of what the source is, and of the state that it is in; hexadecimal."""
        paths = [os.path.abspath(file) for file in self.files]
        states = [[file, *_state(file), _sample(file)] for file in paths]
        opened = hashlib.sha256()
        for file in self.opened:
            opened.update(repr((file, _state(file))).encode())
        for name in self.listed:
            opened.update(repr(name).encode())
        return _digest(self.settings, 8), _digest([_VERSION, states, opened.hexdigest()], 16)


def kept_scan(
    name: str, source: Source, folder: str | os.PathLike[str], scan: Callable[[], Scan]
) -> Scan:
    """The scan of a data set, from a file of the folder that is made if it is not there.

    One process of the machine makes it; others wait. It is made anew if path, size, time or a
    sample of the content of what it was made from changes; the older one is removed.

    Args:
        name: of the data set.
        source: what the scan depends on.
        folder: for the file, and for that of others; made if missing.
        scan: reads and checks all records.

    Raises:
        OSError: the folder cannot be written.
        ValueError: a file in it is damaged.
        whatever `scan` raises.
    """
    place, state = source.digests()
    stem = f"{re.sub('[^A-Za-z0-9_.-]', '_', name)[:80]}-{place}"
    path = Path(folder, f"{stem}-{state}{_SUFFIX}")
    if not path.is_file():
        waiting = f"another process reads the data set {name!r}, waiting"
        with one_at_a_time(Path(folder, stem), waiting, f"set {FOLDER_KEY} to a folder that can"):
            if not path.is_file():
                remove_unfinished(path.parent, f"{stem}*{_SUFFIX}")
                logger.info("data set %r: reading it once, for all trainings: %s", name, path)
                found = scan()
                try:
                    _write(path, name, found)
                except NotKeptError as error:
                    logger.warning("data set %r: %s, so every process reads it", name, error)
                    return found
                for older in set(path.parent.glob(f"{stem}-{'[0-9a-f]' * 16}{_SUFFIX}")) - {path}:
                    older.unlink(missing_ok=True)
    return _open(path)


def _write(path: Path, name: str, scan: Scan) -> None:
    values = {"broken": sorted(scan.broken), "lost": scan.lost, "metadata": scan.metadata}
    items = {"defects": map(astuple, scan.defects)}
    with whole_file(path) as unfinished, open(unfinished, "wb") as stream:
        records: Iterable[dict[str, Any]] = progressing(scan.records, f"{name}: writing", "records")
        write_file(stream, records, items, values)


def _open(path: Path) -> Scan:
    file = StoredFile(path)
    try:
        broken, lost, metadata = (file.contents[key] for key in ("broken", "lost", "metadata"))
        defects = _Defects(file, "defects")
        return Scan(StoredRecords(file), set(broken), lost, defects, metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise file.damaged(f"{type(error).__name__} {error}") from error


class _Defects(StoredItems[Defect]):
    """Defects that stay in the file: a warning an object makes millions of them."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return [Defect(*item) for item in found] if isinstance(index, slice) else Defect(*found)


def _state(file: str) -> tuple[int, ...]:
    """Bytes and time of a file; nothing where it is missing, which reading then tells."""
    try:
        status = os.stat(file)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns


def _sample(file: str) -> str:
    """A digest of what stands at some places of a file, its start and its end among them."""
    if not os.path.isfile(file):
        return ""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        last = max(0, os.fstat(stream.fileno()).st_size - _SAMPLE_BYTES)
        for place in range(_SAMPLES):
            stream.seek(last * place // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _digest(value: Any, length: int) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
