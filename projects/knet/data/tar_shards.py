"""Tar shards in WebDataset's layout, read at random: `key.jpg`, `key.json`, `key.png` in a row.

The layout: https://github.com/webdataset/webdataset. A shard is an uncompressed tar; the members of
a sample follow each other and share their key, the path up to the first dot of the file's name.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator

from detectron2.utils.file_io import PathManager

from knet.data.defects import DataError, failure
from knet.data.folders import SUFFIXES

_BLOCK = tarfile.BLOCKSIZE
# before the suffix of a photo that says that it is none of the labels
_PHOTO = "image."
_MEMBER = re.compile(r"(.+\.tar)#(\d+)\+(\d+)/", re.DOTALL)

# key, and offset and size in bytes of each member by its suffix without the first dot
Sample = tuple[str, dict[str, tuple[int, int]]]


def read_index(path: str | os.PathLike[str]) -> list[Sample]:
    """The samples of a shard in their order; only the headers are read.

    Args:
        path: of an uncompressed tar.

    Returns:
        (key, {suffix: (offset, size)}) of each: ``("a/0001", {"jpg": (512, 20480), …})``. Suffixes
        are in lower case. Members without a suffix, hidden ones and all that are no files are left
        out, as WebDataset does.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: naming the shard, and the key at which it ends if it is truncated; it is no
            uncompressed tar, a key comes back after another one, or a suffix twice in one sample.
    """
    file, samples, seen = os.fspath(path), list[Sample](), set[str]()
    for name, offset, size in _members(file):
        key, suffix = split_name(name)
        if not suffix:
            continue
        if not samples or samples[-1][0] != key:
            if key in seen:
                problem = "its members do not follow each other, or two samples have this key"
                raise failure("shard-order", file, f"sample {key}", problem)
            seen.add(key)
            samples.append((key, {}))
        if suffix in samples[-1][1]:
            raise failure("shard-order", file, f"sample {key}", f"has two members .{suffix}")
        samples[-1][1][suffix] = (offset, size)
    return samples


def picture_of(shard: str, key: str, suffixes: Iterable[str]) -> tuple[str, str]:
    """Which member of a sample is its picture.

    It is the JPEG or what has ``image.`` before its suffix (``image.png``); else the only one with
    a suffix of pictures, where of a PNG and one of another format the PNG has the labels. The order
    of the members does not matter.

    Args:
        shard, key: for the message.
        suffixes: of the members, as :func:`read_index` gives them.

    Returns:
        Its suffix, and its name, without ``image.``: photos keep one name with labels and without.

    Raises:
        DataError: there is none, or it cannot be told which.
    """
    there = list(suffixes)
    found = [one for one in there if one in ("jpg", "jpeg") or one.startswith(_PHOTO)]
    found = found or [one for one in there if f".{one.rpartition('.')[2]}" in SUFFIXES]
    if len(found) == 2 and "png" in found and not any("." in one for one in found):
        found = [one for one in found if one != "png"]
    if len(found) == 1:
        return found[0], f"{key}.{found[0].removeprefix(_PHOTO)}"
    problem = f"no picture among its members ({', '.join(there)})"
    if found:
        problem = f"any of its members {', '.join(found)} may be the picture"
    mend = f"write the picture as {key}.jpg or, of another format, {key}.{_PHOTO}png"
    raise failure("image-missing", shard, f"sample {key}", problem, mend=mend)


def photo_suffix(suffix: str, *, labels: bool) -> str:
    """The suffix of a sample's picture that `picture_of` will find.

    Args:
        suffix: of its file, in lower case without the dot.
        labels: whether a PNG of labels lies beside it.
    """
    plain = f".{suffix}" in SUFFIXES and not (labels and suffix == "png")
    return suffix if plain else f"{_PHOTO}{suffix or 'bin'}"


def read_member(path: str | os.PathLike[str], offset: int, size: int) -> bytes:
    """The bytes of a member; arguments as :func:`read_index` gives them.

    Raises:
        OSError: the shard cannot be read.
        DataError: it ends before the member does.
    """
    with open(path, "rb") as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) < size:
        problem = f"ends {size - len(data):,} bytes before the end of the member at {offset:,}"
        raise failure("shard-truncated", os.fspath(path), "", problem)
    return data


def member_path(shard: str, place: tuple[int, int], name: str) -> str:
    """A path of a member, which records may have in place of a file's.

    "a.tar#512+20480/k.jpg" are the 20480 bytes from byte 512 on of a.tar, whose name is "k.jpg":
    any process reads it at once, without an index in memory.
    """
    return f"{shard}#{place[0]}+{place[1]}/{name}"


def find_member(path: str | os.PathLike[str]) -> tuple[str, int, int] | None:
    """The shard, offset and size of a path that `member_path` made; None for any other.

    Files that are derived of members may lie in a folder of such a name, beside which is no shard.
    """
    found = _MEMBER.match(os.fspath(path))
    if found is None or not os.path.isfile(found[1]):
        return None
    return found[1], int(found[2]), int(found[3])


def file_of(path: str | os.PathLike[str]) -> str:
    """The file on the disk that holds what a path of a record means: a shard, or itself."""
    member = find_member(path)
    return os.fspath(path) if member is None else member[0]


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file or a member; raises as :func:`read_member`."""
    member = find_member(path)
    if member is not None:
        return read_member(*member)
    with open(PathManager.get_local_path(os.fspath(path)), "rb") as stream:
        return stream.read()


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: "a/0001.seg.PNG" gives "a/0001" and "seg.png".

    Without a suffix, or for a hidden file, the suffix is empty.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem or not suffix:
        return name, ""
    return f"{folder}{slash}{stem}", suffix.lower()


def _members(file: str) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each file in a tar, which has to be whole."""
    length, last = os.path.getsize(file), ""
    try:
        with tarfile.open(file, "r:") as tar:
            # next() of Python 3.10 fails on an empty one
            empty = tar.firstmember is None  # type: ignore[attr-defined]
            while not empty and (member := _next(tar, file, last)) is not None:
                if member.offset_data + member.size > length:
                    raise _truncated(file, split_name(member.name)[0], length)
                last = split_name(member.name)[0]
                if member.isreg() and not member.issparse():
                    yield member.name, member.offset_data, member.size
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            end = tar.offset
    except tarfile.ReadError as error:
        problem = f"is no uncompressed tar: {error}"
        raise failure("shard-invalid", file, "", problem) from error
    # tarfile takes whatever it cannot read behind the first member for the end
    with open(file, "rb") as stream:
        stream.seek(end)
        block = stream.read(_BLOCK)
    if len(block) < _BLOCK:
        raise _truncated(file, last, length)
    if any(block):
        problem = f"the header at byte {end:,}, behind sample {last}, is damaged"
        raise failure("shard-invalid", file, "", problem)


def _next(tar: tarfile.TarFile, file: str, last: str) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except tarfile.ReadError as error:
        if not last:
            raise
        raise _truncated(file, last, os.path.getsize(file)) from error


def _truncated(file: str, key: str, length: int) -> DataError:
    where = f"sample {key}" if key else "its first sample"
    problem = f"is truncated: it ends at byte {length:,}, in or behind {where}"
    return failure("shard-truncated", file, "", problem)
