"""Writing weight files, whole or not at all, with their digest (`knet.checkpoint.integrity`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knet.checkpoint.class_names import ClassNames
from knet.checkpoint.integrity import DIGEST, digest
from knet.files import whole_file


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
    """Write published names and values as OpenMMLab does.

    Raises:
        ValueError: another suffix than .pth.
        OSError: the file cannot be written; what was there before still is.
    """
    path = Path(path)
    if path.suffix != ".pth":
        raise ValueError(f"{path}: OpenMMLab reads .pth files")
    meta = {} if classes is None else {"CLASSES": list(classes.names)}
    write_torch(path, {"meta": meta, "state_dict": dict(state)})


def _unwritable(path: str | Path, error: BaseException) -> OSError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return OSError(
        f"{path}: cannot be written: is the disk full, or the folder gone or read-only? "
        f"({reason[:160]})"
    )
