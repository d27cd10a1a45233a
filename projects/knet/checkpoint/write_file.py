"""Writing weights alone, without the state of a training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knet.checkpoint.class_names import ClassNames


def write_weights(
    path: str | Path, state: Mapping[str, Tensor], *, classes: ClassNames | None = None
) -> None:
    """Write our names and values as Detectron2's .pth or as .safetensors, by the path's suffix.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix == ".pth":
        saved: dict[str, Any] = {"model": dict(state), "__author__": "K-Net for Detectron2"}
        if classes is not None:
            saved["classes"] = classes.to_dict()
        torch.save(saved, path)
    elif path.suffix == ".safetensors":
        from safetensors.torch import save_file

        metadata = {"format": "pt"}
        if classes is not None:
            metadata["classes"] = json.dumps(classes.to_dict())
        # it refuses memory that is shared or not in order
        plain = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
        save_file(plain, path, metadata=metadata)
    else:
        raise ValueError(f"{path}: weights are written to a .pth or .safetensors file")


def write_openmmlab(
    path: str | Path, state: Mapping[str, Tensor], *, classes: ClassNames | None = None
) -> None:
    """Write published names and values as OpenMMLab does.

    Raises:
        ValueError: another suffix than .pth.
    """
    path = Path(path)
    if path.suffix != ".pth":
        raise ValueError(f"{path}: OpenMMLab reads .pth files")
    meta = {} if classes is None else {"CLASSES": list(classes.names)}
    torch.save({"meta": meta, "state_dict": dict(state)}, path)
