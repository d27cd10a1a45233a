"""Small weight files that claim to be large."""

from __future__ import annotations

import copy
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knet.checkpoint.write_file import DIGEST, write_weights

__all__ = ["KINDS", "write_bomb"]

KINDS = ("deflated", "shared", "storage", "expanded", "array", "number", "header", "shape")
_CHUNK = 64 << 20


class _Call:
    """What a pickle is to call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def write_bomb(folder: Path, kind: str, name: str, *, megabytes: int = 192) -> Path:
    """Write a file of a kind: its path.

    Args:
        folder: for the file.
        kind: one of `KINDS`.
        name: of a weight.
        megabytes: that a deflated entry has.
    """
    path = folder / f"bomb.{'safetensors' if kind in ('header', 'shape') else 'pth'}"
    if path.suffix == ".safetensors":
        write_weights(path, {name: torch.ones(16)})
        content = path.read_bytes()
        if kind == "header":
            content = (90_000_000).to_bytes(8, "little") + content[8:]
        path.write_bytes(content.replace(b"[16]", b"[99]") if kind == "shape" else content)
        return path
    value: Any = torch.ones(16)
    if kind == "expanded":  # computing its digest would write it out
        value = torch.ones(1).expand(1 << 20, 1 << 20)
    elif kind == "array":
        value = _Call(np.zeros(1).__reduce__()[0], np.ndarray, (10**10,), b"b")
    elif kind == "number":
        value = _Call(np.float32(1).__reduce__()[0], np.dtype("S2147483000"))
    torch.save({"model": {name: value}, DIGEST: "0"}, path)
    if kind in ("deflated", "shared", "storage"):
        with zipfile.ZipFile(path) as archive:
            entries = {entry: archive.read(entry) for entry in archive.namelist()}
        _rewrite(path, entries, kind, megabytes)
    return path


def _rewrite(path: Path, entries: Mapping[str, bytes], kind: str, megabytes: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            pickled = entry.endswith("/data.pkl")
            if kind == "storage" and pickled:
                content = content.replace(b"K\x10tq", b"J\x00\x00\x00\x70tq")
                assert content != entries[entry]
            if kind == "deflated" and pickled:
                _add_zeros(archive, entry, megabytes)
            else:
                archive.writestr(entry, content)
        for i in range(99 if kind == "shared" else 0):
            twin = copy.copy(archive.filelist[0])
            twin.filename = f"archive/data/{i + 9}"
            archive.filelist.append(twin)


def _add_zeros(archive: zipfile.ZipFile, name: str, megabytes: int) -> None:
    """As if they had been compressed, but one chunk is and then repeated."""
    count = (megabytes << 20) // _CHUNK
    deflate, zeros, crc = zlib.compressobj(1, wbits=-15), bytes(_CHUNK), 0
    chunk = deflate.compress(zeros) + deflate.flush(zlib.Z_FULL_FLUSH)
    for _ in range(count):
        crc = zlib.crc32(zeros, crc)
    archive.writestr(name, chunk * count + deflate.flush())
    entry = archive.filelist[-1]
    entry.compress_type, entry.file_size, entry.CRC = zipfile.ZIP_DEFLATED, count * _CHUNK, crc
