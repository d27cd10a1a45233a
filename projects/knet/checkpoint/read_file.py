"""Reading a weight file of any format without running code that it may hold."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import zipfile
from typing import Any

import torch

from knet.checkpoint.allowed_globals import PlainUnpickler, RefusedGlobal, torch_globals
from knet.checkpoint.integrity import DIGEST, check_pickle, check_sizes, check_zip, digest

logger = logging.getLogger(__name__)

_ZIP = b"PK\x03\x04"
# our entries of a safetensors file's metadata
_JSON = ("classes", "files")
# a pickled number that opens files of torch.save before PyTorch 1.6
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


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
        ValueError: the file is empty, damaged as far as `knet.checkpoint.integrity` can tell, no
            weight file, or would run code.
        ImportError: a safetensors file, and safetensors is not installed.
    """
    name = name or path
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{name}: the file is empty: copy or download it again")
    if head.startswith(_ZIP):
        try:
            program = _is_program(path)
            if not program:
                check_zip(path)
        except Exception as error:  # a damaged archive can fail in any way
            raise _damaged(name, size, error) from error
        if program:
            raise ValueError(
                f"{name}: refused, it is a TorchScript program: save the model's state_dict instead"
            )
        read = _read_torch(path, name, size, trust)
    elif head.startswith(_OLD_TORCH):
        read = _read_torch(path, name, size, trust)
    elif len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        read = _read_safetensors(path, name, size)
    elif head[:1] == b"\x80" and head[1:2] <= b"\x05":
        read = _read_pickle(path, name, size, trust)
    else:
        raise ValueError(f"{name}: {_what_it_is(head)}")
    try:
        check_sizes(read, size)
    except ValueError as error:
        raise ValueError(f"{name}: refused, {error}") from error
    if isinstance(read, dict) and DIGEST in read:
        _check_digest(read, name)
    elif not head.startswith(_ZIP):
        logger.info("%s: has no checksum, so damage to its values alone cannot be seen", name)
    return read


def _check_digest(read: dict[Any, Any], name: str) -> None:
    expected = read.pop(DIGEST)
    try:
        same = digest(read) == expected
    except RecursionError:  # we write nothing so deep
        same = False
    if not same:
        raise ValueError(
            f"{name}: damaged, its content is not what was written (checksum): copy or download "
            f"it again. If it was changed on purpose, its entry {DIGEST!r} must go"
        )


def _what_it_is(head: bytes) -> str:
    text = head.lstrip().lower()
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


def _refused(name: str, what: str) -> ValueError:
    return ValueError(
        f"{name}: refused, nothing was loaded: the file asks for {what} while it is read. Weights "
        "need nothing of the kind, and it may run any code on this machine. If you trust who made "
        "the file, set MODEL.KNET.UNSAFE_WEIGHTS True (tools: --trust)"
    )


def _read_torch(path: str, name: str, size: int, trust: bool) -> Any:
    if trust:
        logger.warning("%s: read with trust, code that it holds may run", name)
    try:
        with torch.serialization.safe_globals(torch_globals()):
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # a damaged file can fail in any way
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found and not trust:
            raise _refused(name, found.group(1)) from None
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path) and not trust:
            # the archive is whole
            what = (
                "what PyTorch reads only with trust (such as another pickle protocol than its own)"
            )
            raise _refused(name, what) from error
        raise _damaged(name, size, error) from error


def _is_program(path: str) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_pickle(path: str, name: str, size: int, trust: bool) -> Any:
    with open(path, "rb") as file:
        if trust:
            logger.warning("%s: read with trust, code that it holds may run", name)
        try:
            check_pickle(path, size)
            if trust:
                return pickle.load(file, encoding="latin1")
            return PlainUnpickler(file).load()
        except RefusedGlobal as error:
            raise _refused(name, error.name) from None
        except Exception as error:  # a damaged pickle can fail in any way
            raise _damaged(name, size, error) from error


def _read_safetensors(path: str, name: str, size: int) -> dict[str, Any]:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name}: a safetensors file, and safetensors is not installed: run "
            "`pip install safetensors`"
        ) from error
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            read: dict[str, Any] = {"model": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
            metadata = file.metadata() or {}
        read.update({key: json.loads(metadata[key]) for key in _JSON if key in metadata})
    except Exception as error:  # a damaged file can fail in any way
        raise _damaged(name, size, error) from error
    if DIGEST in metadata:
        read[DIGEST] = metadata[DIGEST]
    return read
