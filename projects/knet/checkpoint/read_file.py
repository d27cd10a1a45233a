"""Reading a weight file of any format without running code that it may hold.

A pickle is a small program: it imports what it names and calls it. So a file from elsewhere gets
only the few names below, none of which can do more than make an array or a plain value.

Pickles, .pth files from before PyTorch 1.6 and others' .safetensors have no checksum: only their
structure is checked.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knet.checkpoint.write_file import DIGEST, digest

logger = logging.getLogger(__name__)

_ZIP = b"PK\x03\x04"
# a pickled number that opens files of torch.save before PyTorch 1.6
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# our entries of a safetensors file's metadata
_JSON = ("classes", "files")
_LARGE = 1 << 30  # bytes; a small tensor may repeat its values
_IS_FOLDER = 0x10  # MS-DOS's attribute


class _Refused(ValueError):
    """What a whole file asks for is not done."""


# ---- names in a pickle ---------------------------------------------------------------------------


def _asks_for(what: str) -> _Refused:
    return _Refused(
        f"nothing was loaded: the file asks for {what} while it is read. Weights need nothing of "
        "the kind, and it may run any code on this machine. If you trust who made the file, set "
        "MODEL.KNET.UNSAFE_WEIGHTS True (tools: --trust)"
    )


def _empty_array(subtype: Any, shape: Any, dtype: Any) -> np.ndarray:
    """Arrays are made empty and get their values afterwards."""
    return np.empty(0, "b")


def _scalar(dtype: np.dtype, value: bytes | str) -> Any:
    """A number from its bytes, which Python 2 wrote as text."""
    return np.frombuffer(value.encode("latin1") if isinstance(value, str) else value, dtype)[0]


def _dtype(*arguments: Any) -> np.dtype:
    dtype = np.dtype(*arguments)
    if dtype.kind in "OV":  # Python objects and records are no weights
        raise _asks_for(f"numpy.dtype({arguments[0]!r})")
    return dtype


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 pickles bytes for Python 2."""
    if encoding != "latin1":
        raise _asks_for(f"_codecs.encode({encoding!r})")
    return text.encode("latin1")


# names that a pickle may import, and what stands for them
_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    # only an argument of _reconstruct: it cannot be called
    "numpy.ndarray": "numpy.ndarray",
    **{
        f"numpy.{core}.multiarray.{name}": value
        for core in ("core", "_core")  # before and since numpy 2
        for name, value in (("_reconstruct", _empty_array), ("scalar", _scalar))
    },
}
# PyTorch's own list has tensors. Types without a module cannot be named, but be filled with values
_TORCH_ALLOWED: list[Any] = [
    *((value, name) for name, value in _ALLOWED.items()),
    *((kind, kind.__name__) for kind in {type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"}),
    (np.ndarray, "ndarray"),
    # records of plain attributes: the command line of ImageNet training, MMEngine's log
    (argparse.Namespace, "argparse.Namespace"),
    (argparse.Namespace, "mmengine.logging.history_buffer.HistoryBuffer"),
]


class _Unpickler(pickle.Unpickler):
    """Reads a pickle of numbers, strings, plain containers and numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise _asks_for(f"{module}.{name}") from None


# ---- files ---------------------------------------------------------------------------------------


def read_file(path: str, *, name: str = "", trust: bool = False) -> Any:
    """What a file holds: PyTorch's (.pth), pickle (.pkl) or safetensors, told by its content.

    Args:
        path: of a local file.
        name: what messages call it; by default its path.
        trust: read it even if that runs code that it holds.

    Returns:
        As saved, without the digest; of a safetensors file `{"model": names and tensors}` with,
        if it has any, `classes` as `KNetCheckpointer` saves them and `files` of `write_weights`.

    Raises:
        ValueError: the file is empty, damaged as far as checksums and structure tell, no weight
            file, or would run code.
        ImportError: a safetensors file, and safetensors is not installed.
    """
    name = name or path
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(_ZIP):
        read = _read_zip
    elif head.startswith(_OLD_TORCH):
        read = _read_torch
    elif len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        read = _read_safetensors
    elif head[:1] == b"\x80" and head[1:2] <= b"\x05":
        read = _read_pickle
    else:
        raise ValueError(f"{name}: {_what_it_is(head)}")
    if trust and read is not _read_safetensors:
        logger.warning("%s: read with trust, code that it holds may run", name)
    try:
        saved = read(path, size, trust)
        _check_sizes(saved, size)
    except _Refused as error:
        raise ValueError(f"{name}: refused, {error}") from error
    except ModuleNotFoundError as error:
        if error.name != "safetensors":
            raise _damaged(name, size, error) from error
        raise ImportError(
            f"{name}: a safetensors file, and safetensors is not installed: run "
            "`pip install safetensors`"
        ) from error
    except Exception as error:  # a damaged file can fail in any way
        raise _damaged(name, size, error) from error
    if isinstance(saved, dict) and DIGEST in saved:
        _check_digest(saved, name)
    elif not head.startswith(_ZIP):
        level = logging.DEBUG if name.startswith("package://") else logging.INFO  # pip has looked
        text = "%s: has no checksum, so damage to its values alone cannot be seen"
        logger.log(level, text, name)
    return saved


def peek(path: str | os.PathLike[str], *, trust: bool = False) -> Any:
    """What a .pth file holds, unchecked, with tensors that are not read; errors are of any kind."""
    return _load(path, trust, mmap=True)


def _load(path: str | os.PathLike[str], trust: bool, *, mmap: bool = False) -> Any:
    with torch.serialization.safe_globals(_TORCH_ALLOWED):
        return torch.load(path, map_location="cpu", weights_only=not trust, mmap=mmap)


def _read_torch(path: str, size: int, trust: bool) -> Any:
    try:
        return _load(path, trust)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found and not trust:
            raise _asks_for(found[1]) from None
        if zipfile.is_zipfile(path) and not trust:  # it is whole
            raise _asks_for(
                "what PyTorch reads only with trust (such as another pickle protocol than its own)"
            ) from error
        raise


def _read_zip(path: str, size: int, trust: bool) -> Any:
    """With its checksums compared first, which takes no more memory than a buffer."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise _Refused("it is a TorchScript program: save the model's state_dict instead")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    f"its entry {entry.filename!r} is compressed, torch.save's are not"
                )
            # PyTorch's reader goes by the attribute and would read nothing, Python's does not
            folder = bool(entry.external_attr & _IS_FOLDER) != entry.is_dir()
            if folder or entry.compress_size != entry.file_size:
                raise ValueError(f"its entry {entry.filename!r} is marked wrongly")
        claimed = sum(entry.file_size for entry in entries)
        if claimed > size:
            raise ValueError(f"its entries claim {claimed:,} bytes")
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"the checksum of its entry {broken!r} does not match")
    return _read_torch(path, size, trust)


def _read_pickle(path: str, size: int, trust: bool) -> Any:
    with open(path, "rb") as file:
        position = 0
        for opcode, argument, at in pickletools.genops(file):
            position = at or 0
            # Python makes a table as long as the largest number of these
            if opcode.name.endswith("PUT") and isinstance(argument, int) and argument > position:
                raise ValueError(f"impossible number {argument} at byte {position}")
        if position + 1 != size:
            raise ValueError(f"it ends at byte {position + 1}")
        file.seek(0)
        # Python 2 wrote the published files of Detectron2
        return (pickle.Unpickler if trust else _Unpickler)(file, encoding="latin1").load()


def _read_safetensors(path: str, size: int, trust: bool) -> dict[str, Any]:
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        saved: dict[str, Any] = {"model": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
        metadata = file.metadata() or {}
    saved.update({key: json.loads(metadata[key]) for key in _JSON if key in metadata})
    if DIGEST in metadata:
        saved[DIGEST] = metadata[DIGEST]
    return saved


def _check_sizes(saved: Any, size: int) -> None:
    """Compare what tensors say of their sizes with the size of the file, without their values."""
    seen: set[int] = set()
    storages: dict[int, int] = {}
    waiting = [saved]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (Mapping, list, tuple, set, frozenset)) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value, *value.values()] if isinstance(value, Mapping) else value
        elif isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta:
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            needed = value.numel() * value.element_size()
            if needed > max(_LARGE, storage.nbytes()):
                raise _Refused(f"a tensor is of {needed:,} bytes, which the file does not hold")
    if sum(storages.values()) > size:
        raise _Refused(f"its tensors claim {sum(storages.values()):,} bytes of {size:,}")


def _check_digest(saved: dict[Any, Any], name: str) -> None:
    expected = saved.pop(DIGEST)
    try:
        same = digest(saved) == expected
    except RecursionError:  # we write nothing so deep
        same = False
    if not same:
        raise ValueError(
            f"{name}: damaged, its content is not what was written (checksum): copy or download "
            f"it again. If it was changed on purpose, its entry {DIGEST!r} must go"
        )


def _what_it_is(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "the file is empty: copy or download it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "a web page was saved instead of the weights, so the download failed: open the link "
            "in a browser, or check it"
        )
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the weights: run `git lfs pull` where it comes from"
    if text.startswith((b"{", b"[")):
        return "JSON text, no weights: perhaps the message of a failed download"
    return (
        f"no weight file: it is neither of PyTorch (.pth), nor a pickle (.pkl), nor safetensors; "
        f"it starts with {head[:8]!r}"
    )


def _damaged(name: str, size: int, error: BaseException) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(
        f"{name}: truncated or damaged, {size} bytes: copy or download it again ({reason[:160]})"
    )
