"""Records of a large data set that stay in a file, in which all processes of a machine look.

A `Records` is used like the list of dicts that `DatasetCatalog.get` gives of a small one; each look
at a record makes a new dict. Masks stay what the annotations have, polygons or RLE.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Generic, TypeVar, overload

import numpy as np
from detectron2.structures import BoxMode

Record = dict[str, Any]
T = TypeVar("T")

# bits of what is known of a record without a look at it
WIDE, ANNOTATED, LABELLED = 1, 2, 4

_MAGIC = b"knetrec1"
_TAIL = struct.Struct("<Q8s")  # offset of the table of contents, magic
# what a file may make: whoever can write to it must not run code in those who read it
_TYPES = (BoxMode, np.ndarray, np.dtype, np.generic)
_CLASSES = {
    ("detectron2.structures.boxes", "BoxMode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


def record_flags(record: Mapping[str, Any]) -> int:
    """Bits of a record: WIDE, more than high; ANNOTATED; LABELLED, with an object but crowds."""
    flags = WIDE if record.get("width", 0) > record.get("height", 0) else 0
    if "annotations" in record:
        labelled = any(not entry.get("iscrowd", 0) for entry in record["annotations"])
        flags |= ANNOTATED | (LABELLED if labelled else 0)
    return flags


class Records(Sequence[Record]):
    """A data set's records; `flags` are those of each, (N,) uint8."""

    flags: np.ndarray

    def __len__(self) -> int:
        return len(self.flags)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        """A record, or some of them, which stay in their file."""
        if isinstance(index, slice):
            return Selection([self], np.arange(len(self))[index])
        position = int(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._read(position % len(self))

    @abstractmethod
    def _read(self, position: int) -> Record: ...


class Selection(Records):
    """Records of one data set after another, those that were chosen.

    Args:
        parts: data sets, as lists or in files.
        positions: in what they hold together, (N,) integers; None: all.
    """

    def __init__(
        self, parts: Sequence[Sequence[Record]], positions: np.ndarray | None = None
    ) -> None:
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        flags = np.concatenate([flags_of(part) for part in parts])
        self.positions = np.arange(len(flags)) if positions is None else positions
        self.flags = flags[self.positions]

    def _read(self, position: int) -> Record:
        found = int(self.positions[position])
        part = int(np.searchsorted(self._ends, found, side="right"))
        return self.parts[part][found - int(self._ends[part] - len(self.parts[part]))]


def flags_of(records: Sequence[Record]) -> np.ndarray:
    """The bits of each record, (N,) uint8."""
    if isinstance(records, Records):
        return records.flags
    return np.fromiter(map(record_flags, records), np.uint8, len(records))


def select(records: Sequence[Record], chosen: np.ndarray) -> Sequence[Record]:
    """Those of (N,) records for which `chosen`, (N,) bool, holds; of a list, a list."""
    if isinstance(records, Records):
        return records if chosen.all() else Selection([records], np.flatnonzero(chosen))
    return [record for record, wanted in zip(records, chosen) if wanted]


def join(parts: Sequence[Sequence[Record]]) -> Sequence[Record]:
    """The records of data sets one after the other; of lists, a list."""
    if not any(isinstance(part, Records) for part in parts):
        return [record for part in parts for record in part]
    return parts[0] if len(parts) == 1 else Selection(parts)


class NotKeptError(TypeError):
    """A value that a file of records does not hold."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Called for what is no built-in type of data."""
        known = isinstance(value, _TYPES) or getattr(value, "__name__", "") == BoxMode.__name__
        known = known or (getattr(value, "__module__", "") or "").startswith("numpy")
        if not known:
            raise NotKeptError(f"a {type(value).__name__} is not kept on disk")
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only what records hold."""
        if (module, name) not in _CLASSES:
            raise pickle.UnpicklingError(f"{module}.{name} is in no file of records")
        return super().find_class(module, name)


def _dump(value: Any, stream: BinaryIO) -> None:
    _Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(value)


class StoredFile:
    """A file of records and of what else belongs to them, mapped into memory.

    Pages of it are in memory once a machine, and the system drops them when it needs memory.

    Args:
        path: of a file that `write_file` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or no such file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with open(self.path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < _TAIL.size:
                raise self.damaged("it is too short")
            self.data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        start, magic = _TAIL.unpack_from(self.data, size - _TAIL.size)
        if magic != _MAGIC or start > size:
            raise self.damaged("its end is not that of such a file")
        self.contents: dict[str, Any] = self.load(start, size)

    def load(self, start: int, end: int) -> Any:
        """The value between two places."""
        try:
            return _Unpickler(io.BytesIO(self.data[start:end])).load()
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError) as error:
            raise self.damaged(str(error)) from error

    def array(self, name: str) -> np.ndarray:
        """A named array, (N,), read-only, which stays in the file."""
        dtype, start, length = self.contents[name]
        return np.frombuffer(self.data, dtype, length, start)

    def damaged(self, problem: str) -> ValueError:
        """An error that names the file."""
        return ValueError(f"{self.path}: damaged ({problem}); remove it: it is made anew")

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredFile, (self.path,)  # processes that are not forked open it themselves


class StoredItems(Sequence[T], Generic[T]):
    """Values of a file by position; iteration reads one after the other."""

    def __init__(self, file: StoredFile, name: str) -> None:
        self.file, self.name = file, name
        self._places = file.array(name)  # N + 1

    def __len__(self) -> int:
        return len(self._places) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        return self.file.load(int(self._places[position]), int(self._places[position + 1]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.name)


class StoredRecords(Records):
    """The records of a file."""

    def __init__(self, file: StoredFile) -> None:
        self._items = StoredItems[Record](file, "records")
        self.flags = file.array("flags")

    def _read(self, position: int) -> Record:
        return self._items[position]

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredRecords, (self._items.file,)


def write_file(
    stream: BinaryIO,
    records: Iterable[Record],
    items: Mapping[str, Iterable[Any]],
    values: Mapping[str, Any],
) -> None:
    """Write a file that `StoredFile` opens.

    Args:
        stream: at its start.
        records: in Detectron2's format.
        items: further sequences, which are read one item after the other.
        values: which are read when the file is opened.

    Raises:
        NotKeptError: a value is neither data of Python, an array nor a BoxMode.
        OSError: it cannot be written.
    """
    contents: dict[str, Any] = dict(values)
    flags = bytearray()

    def noted() -> Iterator[Record]:
        for record in records:
            flags.append(record_flags(record))
            yield record

    arrays: dict[str, np.ndarray] = {}
    for name, sequence in {"records": noted(), **items}.items():
        places = [stream.tell()]
        for item in sequence:
            _dump(item, stream)
            places.append(stream.tell())
        arrays[name] = np.array(places, np.int64)
    arrays["flags"] = np.frombuffer(bytes(flags), np.uint8)
    for name, array in arrays.items():
        stream.write(b"\0" * (-stream.tell() % 8))
        contents[name] = (array.dtype.str, stream.tell(), len(array))
        stream.write(array.tobytes())
    start = stream.tell()
    _dump(contents, stream)
    stream.write(_TAIL.pack(start, _MAGIC))
