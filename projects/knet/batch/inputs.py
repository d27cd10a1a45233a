"""Which pictures a run is over: found once, numbered, and kept as a table beside the results.

Of folders and globs the names are in memory, 0.1 GB a million; lists, Parquet files and tars are
read piece by piece. While the table is written, ids and digests take less than that.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from knet.data.defects import DataError
from knet.data.folders import is_read
from knet.data.tar_shards import picture_of, read_index
from knet.errors import UserError, system_fault
from knet.files import whole_file
from knet.predict.describe import describe_problem
from knet.predict.files import left_out_of, named_files
from knet.results.coco_files import ids_of_numbers, number_of
from knet.results.parquet import pa, pq, with_about

__all__ = [
    "INPUTS",
    "Input",
    "absolute",
    "find_inputs",
    "read_inputs",
    "require_unique_stems",
    "write_inputs",
]

INPUTS = "inputs.parquet"
_PATH = "path"  # column of a Parquet file of paths
_LISTS = (".txt", ".lst", ".list")
_ROWS = 1000  # in memory while they are found
_DIGEST = 16  # bytes
# by default
_SHARDS = 128
_LEAST = 8  # pictures of one
_SCHEMA = pa.schema(
    [
        (_PATH, pa.string()),
        ("file_name", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("error", pa.string()),
    ]
)


class Input(NamedTuple):
    """A picture.

    Attributes:
        path: of its file, or of the tar that it lies in.
        file_name: without folders; in a tar the member's name, with them.
        offset, size: in the tar, in bytes; None for a file.
        error: why it cannot be read, if that is known by now.
    """

    path: str
    file_name: str
    offset: int | None = None
    size: int | None = None
    error: str | None = None


def absolute(inputs: Sequence[str]) -> list[str]:
    """Inputs that mean the same in any working directory."""
    return [os.path.abspath(os.path.expanduser(name)) for name in inputs]


def find_inputs(
    inputs: Sequence[str], say: Callable[[str], None] = lambda text: None
) -> Iterator[Input]:
    """The pictures that inputs stand for, in their order, by absolute paths.

    Args:
        inputs: pictures, tars (see `picture_of` of `knet.data.tar_shards`), folders
            (the pictures and tars in them), globs, lists (``.txt``, ``.lst``, ``.list``: a path a
            line) and Parquet files (of the column ``path``). Paths in lists and Parquet files are
            relative to the folder of their file.
        say: told of files in folders that are left out, and of tars that cannot be read: each of
            these is one input with an error.

    Raises:
        UserError: an input stands for nothing, or a list or Parquet file cannot be read.
        OSError: a tar cannot be read now, such as on a file system that has gone.
    """
    for name in absolute(inputs):
        for note in left_out_of(name):
            say(note)
        for file in named_files(name, lambda file: is_read(file) or _is_tar(file)):
            suffix = Path(file).suffix.lower()
            paths: Iterable[str] = [file]
            if suffix in _LISTS:
                paths = _lines(file)
            elif suffix == ".parquet":
                paths = _column(file)
            for path in map(os.path.abspath, paths):
                yield from _members(path, say) if _is_tar(path) else [_file(path)]


def write_inputs(
    path: Path,
    inputs: Iterable[Input],
    *,
    shard_size: int | None,
    about: Mapping[str, Any],
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the table of a run's pictures, each once: those of shard k are its row group k.

    The ids are those of `knet.results.coco_files.image_ids`.

    Args:
        path: of the table.
        inputs: at least one.
        shard_size: pictures of a shard; the last one may have fewer. None for 1,000, or as many as
            make `_SHARDS` shards: workers share them out.
        about: the run, for the metadata, which get ``images``, the number of pictures, and
            ``shard_size`` beside.
        say: told of pictures that were named before.

    Raises:
        UserError: there is no picture.
        OSError: the table cannot be written.
    """
    numbers, places = array("q"), bytearray()
    # ids, and what comes twice, are known once all names are
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        with pq.ParquetWriter(spool, _SCHEMA) as writer:
            rows: list[dict[str, Any]] = []
            for found in tqdm(inputs, desc="listing", unit=" pictures", unit_scale=True):
                numbers.append(number_of(found.file_name))
                places += _digest(f"{found.path}\0{found.offset}")
                rows.append(found._asdict())
                if len(rows) == _ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                    rows.clear()
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
        if not numbers:
            raise UserError("the inputs name no picture")
        taken = _first_of_each(places)
        ids = ids_of_numbers(np.frombuffer(numbers, np.int64)[taken])
        if len(ids) < len(taken):
            say(f"named once more and left out: {len(taken) - len(ids):,} pictures")
        if shard_size is None:
            shard_size = min(1000, max(_LEAST, -(-len(ids) // _SHARDS)))
        metadata = with_about({**about, "shard_size": shard_size, "images": len(ids)})
        schema = _SCHEMA.insert(0, pa.field("image_id", pa.int64())).with_metadata(metadata)
        with (
            pq.ParquetFile(spool) as file,
            whole_file(path) as unfinished,
            pq.ParquetWriter(unfinished, schema) as writer,
        ):
            start = 0
            for table in _tables(file, taken, shard_size):
                column = pa.array(ids[start : start + len(table)])
                table = table.add_column(0, schema.field(0), column)
                writer.write_table(table.cast(schema), row_group_size=shard_size)
                start += len(table)


def _tables(file: pq.ParquetFile, taken: np.ndarray, size: int) -> Iterator[pa.Table]:
    """The rows of a file that are taken, (N,) bool, in tables of a size, but for the last."""
    left, start = _SCHEMA.empty_table(), 0
    for batch in file.iter_batches():
        mask = pa.array(taken[start : start + len(batch)])
        start += len(batch)
        left = pa.concat_tables([left, pa.Table.from_batches([batch.filter(mask)])])
        while len(left) >= size:
            yield left.slice(0, size)
            left = left.slice(size)
    if len(left):
        yield left


def require_unique_stems(path: Path) -> None:
    """Raise UserError if the files of results of two pictures in a table would have one name."""
    digests = bytearray()
    for _, stem in _stems(path):
        digests += _digest(stem)
    again = np.flatnonzero(~_first_of_each(digests))
    if len(again):
        start = again[0] * _DIGEST
        digest = digests[start : start + _DIGEST]
        first, second, *_ = (place for place, stem in _stems(path) if _digest(stem) == digest)
        raise UserError(
            f"--results: those of {first} and {second} would have one name; leave it out, or take "
            "one folder at a time"
        )


def _stems(path: Path) -> Iterator[tuple[str, str]]:
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(columns=["path", "file_name", "offset", "error"]):
            for row in batch.to_pylist():
                if row["error"] is None:
                    name = row["file_name"]
                    place = row["path"] if row["offset"] is None else f"{row['path']}/{name}"
                    yield place, Path(name).stem


def _digest(text: str) -> bytes:
    return hashlib.blake2b(os.fsencode(text), digest_size=_DIGEST).digest()


def _first_of_each(digests: bytearray) -> np.ndarray:
    """(N,) bool: whether no earlier one of N digests is the same."""
    first, second = np.frombuffer(digests, np.uint64).reshape(-1, 2).T
    order = np.lexsort((first, second))  # stable
    same = (np.diff(first[order]) == 0) & (np.diff(second[order]) == 0)
    found = np.ones(len(order), bool)
    found[order[1:][same]] = False
    return found


def read_inputs(path: Path, shard: int) -> pa.Table:
    """The pictures of a shard: the fields of `Input` and ``image_id``."""
    with pq.ParquetFile(path) as file:
        return file.read_row_group(shard)


def _is_tar(file: str) -> bool:
    return file.lower().endswith(".tar")


def _file(path: str) -> Input:
    return Input(path, os.path.basename(path))


def _members(path: str, say: Callable[[str], None]) -> Iterator[Input]:
    """The pictures of a tar; one input with an error if it cannot be read."""
    try:
        samples = read_index(path)
    except (OSError, DataError) as error:
        if system_fault(error):
            raise
        problem = describe_problem(path, error)
        say(f"error: {problem}")
        yield _file(path)._replace(error=problem)
        return
    for key, members in samples:
        try:
            suffix, name = picture_of(path, key, members)
        except DataError as error:
            yield Input(path, key, error=str(error))
        else:
            yield Input(path, name, *members[suffix])


def _lines(file: str) -> Iterator[str]:
    try:
        with open(file, encoding="utf-8-sig") as stream:
            for line in filter(None, map(str.strip, stream)):
                yield os.path.join(os.path.dirname(file), line)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as a list of paths: {error}") from error


def _column(file: str) -> Iterator[str]:
    try:
        with pq.ParquetFile(file) as table:
            if _PATH not in table.schema_arrow.names:
                raise UserError(
                    f"{file} has no column {_PATH!r}, of the paths of pictures; its columns are "
                    f"{', '.join(table.schema_arrow.names)}"
                )
            for batch in table.iter_batches(columns=[_PATH]):
                for path in batch.column(0).to_pylist():
                    if not isinstance(path, str):
                        raise UserError(f"{file}: {path!r} in the column {_PATH!r} is no path")
                    yield os.path.join(os.path.dirname(file), path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error
