"""Writing weight files, whole or not at all, with a checksum of their content.

A .pth since PyTorch 1.6 is a zip archive with a CRC-32 an entry, which PyTorch does not look at.
Files of this package carry a CRC-32 of their content besides (`digest`), which also covers what a
reader makes of it, and .safetensors. It finds every damage of up to 32 bits in a row, and all but
one of 4 billion others; it takes some 0.15 s for a checkpoint of 500 MB.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knet.checkpoint.class_names import ClassNames
from knet.files import whole_file

# the entry of a saved dict, or of a safetensors file's metadata, that holds the digest
DIGEST = "knet_digest"

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


def write_torch(path: str | Path, saved: Mapping[str, Any]) -> None:
    """Write a .pth file.

    Raises:
        OSError: the file cannot be written; what was there before still is.
    """
    content = {**saved, DIGEST: digest(saved)}
    try:
        # PyTorch gets no name, which would go into the file
        with whole_file(path) as unfinished, open(unfinished, "wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # PyTorch's hides the file's own
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise _unwritable(path, cause) from error


def write_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    classes: ClassNames | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write our names and values as Detectron2's .pth or as .safetensors, by the path's suffix.

    Args:
        path: of the file.
        state: names and values.
        classes: names of the model's classes.
        files: digests of files that belong to the weights, kept with them.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written; what was there before still is.
    """
    path = Path(path)
    extra: dict[str, Any] = {} if classes is None else {"classes": classes.to_dict()}
    if files is not None:
        extra["files"] = dict(files)
    if path.suffix == ".pth":
        write_torch(path, {"model": dict(state), "__author__": "K-Net for Detectron2", **extra})
    elif path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        # it refuses memory that is shared or not in order
        plain = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
        metadata = {"format": "pt", DIGEST: digest({"model": plain, **extra})}
        metadata.update({key: json.dumps(value) for key, value in extra.items()})
        try:
            with whole_file(path) as unfinished:
                save_file(plain, unfinished, metadata=metadata)
        except (OSError, SafetensorError) as error:
            raise _unwritable(path, error) from error
    else:
        raise ValueError(f"{path}: weights are written to a .pth or .safetensors file")


def write_openmmlab(
    path: str | Path, state: Mapping[str, Tensor], *, classes: ClassNames | None = None
) -> None:
    """Write published names and values as OpenMMLab does; errors as of `write_weights`."""
    if Path(path).suffix != ".pth":
        raise ValueError(f"{path}: OpenMMLab reads .pth files")
    meta = {} if classes is None else {"CLASSES": list(classes.names)}
    write_torch(path, {"meta": meta, "state_dict": dict(state)})


def _unwritable(path: str | Path, error: BaseException) -> OSError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return OSError(
        f"{path}: cannot be written: is the disk full, or the folder gone or read-only? "
        f"({reason[:160]})"
    )
