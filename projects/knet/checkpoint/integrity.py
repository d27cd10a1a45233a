"""Whether a weight file is as it was written.

A .pth since PyTorch 1.6 is a zip archive with a CRC-32 an entry, which PyTorch does not look at.
Files of this package carry a CRC-32 of their content besides (`digest`), which also covers what a
reader makes of it, and .safetensors. It finds every damage of up to 32 bits in a row, and all but
one of 4 billion others; it takes some 0.15 s for a checkpoint of 500 MB. Pickles, .pth files from
before PyTorch 1.6 and others' .safetensors have no checksum: only their structure is checked.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# the entry of a saved dict, or of a safetensors file's metadata, that holds the digest
DIGEST = "knet_digest"

_LARGE = 1 << 30  # bytes; a small tensor may repeat its values
_IS_FOLDER = 0x10  # MS-DOS's attribute
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)


def digest(saved: Any) -> str:
    """Checksum of names, types, shapes and values in nested containers, whatever their order.

    Args:
        saved: containers of tensors, arrays and plain values; of any other object only the type
            counts.
    """
    total = 0
    for part in _parts(saved):
        total = zlib.crc32(part, total)
    return f"{total:08x}"


def check_zip(path: str) -> None:
    """Read an archive and compare its checksums, which takes no more memory than a buffer.

    Raises:
        ValueError: what does not match, or would be larger than the file; other errors of
            `zipfile`, which a damaged archive can cause, are of any kind.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        for entry in entries:
            # what PyTorch's reader goes by, which would read nothing, and Python's does not
            folder = bool(entry.external_attr & _IS_FOLDER) != entry.is_dir()
            stored = entry.compress_type == zipfile.ZIP_STORED
            if folder or (stored and entry.compress_size != entry.file_size):
                raise ValueError(f"its entry {entry.filename!r} is marked wrongly")
            if not stored:
                raise ValueError(
                    f"its entry {entry.filename!r} is compressed, torch.save's are not"
                )
        claimed, size = sum(entry.file_size for entry in entries), os.path.getsize(path)
        if claimed > size:
            raise ValueError(f"its entries claim {claimed:,} bytes")
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"the checksum of its entry {broken!r} does not match")


def check_pickle(path: str, size: int) -> None:
    """Walk through a pickle without running it.

    Raises:
        ValueError: it goes on behind its end, or would fill the memory; other errors of
            `pickletools`, which a damaged pickle can cause, are of any kind.
    """
    position = 0
    with open(path, "rb") as file:
        for opcode, argument, at in pickletools.genops(file):
            position = at or 0
            # Python makes a table as long as the largest number of these
            if opcode.name in _MEMO and isinstance(argument, int) and argument > position:
                raise ValueError(f"impossible number {argument} at byte {position}")
    if position + 1 != size:
        raise ValueError(f"it ends at byte {position + 1}")


def check_sizes(saved: Any, size: int) -> None:
    """Compare what tensors say of their sizes with the size of the file that they are from.

    Args:
        saved: containers of tensors and others, whose values are not touched.
        size: of the file in bytes.

    Raises:
        ValueError: they would be larger than the file.
    """
    seen: dict[int, Any] = {}
    storages: dict[int, int] = {}
    waiting = [saved]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        if isinstance(value, Mapping):
            seen[id(value)] = value
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            seen[id(value)] = value
            waiting += value
        elif isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta:
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            needed = value.numel() * value.element_size()
            if needed > max(_LARGE, storage.nbytes()):
                raise ValueError(f"a tensor is of {needed:,} bytes, which the file does not hold")
    if sum(storages.values()) > size:
        raise ValueError(f"its tensors claim {sum(storages.values()):,} bytes of {size:,}")


def _parts(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        # what we write is never of another kind
        if value.layout is torch.strided and not (
            value.is_meta or value.is_quantized or value.is_complex()
        ):
            flat = value.detach().cpu().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, np.generic):
        yield from _parts(value.item())
    elif isinstance(value, Mapping):
        yield f"{{{len(value)}".encode()
        for key in sorted(value, key=_order):
            yield from _parts(key)
            yield from _parts(value[key])
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield f"[{len(value)}".encode()
        for item in sorted(value, key=_order) if isinstance(value, (set, frozenset)) else value:
            yield from _parts(item)
    else:
        plain = repr(value) if isinstance(value, _PLAIN) else ""
        yield f"{type(value).__name__} {plain};".encode("utf-8", "surrogatepass")


def _order(key: Any) -> tuple[str, str]:
    return type(key).__name__, repr(key)
