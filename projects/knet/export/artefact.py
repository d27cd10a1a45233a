"""Exported files of every form behind one interface, for checks and benchmarks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knet.export.compiled import load_compiled
from knet.export.program import load_program
from knet_run.runtimes import open_runtime


class Artefact:
    """A file of `knet export`: arrays by name in, arrays by name out.

    Args:
        path: of the file.
        form: "onnx", "openvino", "torch_export" or "aot_inductor".
        threads: on the CPU; by default the runtime's choice.

    Attributes:
        info: the metadata.
        size: of the file and what belongs to it, in bytes.

    Raises:
        ValueError, ImportError: as of the readers of each form.
    """

    def __init__(
        self, path: str | os.PathLike[str], form: str, *, threads: int | None = None
    ) -> None:
        self.path, self.form = Path(path), form
        beside = (f"{path}.data", self.path.with_suffix(".bin") if form == "openvino" else "")
        files = [self.path, *(Path(p) for p in beside if p and Path(p).is_file())]
        self.size = sum(file.stat().st_size for file in files)
        self._runtime: Any = None
        self._module: Any = None
        if form in ("onnx", "openvino"):
            self._runtime = open_runtime(str(path), threads=threads)
            self.info = json.loads(self._runtime.metadata)
        elif form == "torch_export":
            self._module, self.info = load_program(path)
        else:
            self._module, self.info = load_compiled(path)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once."""
        if self._runtime is not None:
            return self._runtime.run(feeds)
        device = next((b.device for b in getattr(self._module, "buffers", tuple)()), None)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in feeds.items()}
        if device is not None:
            tensors["image"] = tensors["image"].to(device)
        with torch.no_grad():
            results = self._module(**tensors)
        return {name: x.cpu().numpy() for name, x in results.items()}


def feeds_of(info: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What a graph takes, of one image as the model takes it.

    Args:
        info: the graph's metadata.
        record: of `knet.export.records.Records`.
    """
    if info["input"]["name"] == "picture":
        return {"picture": record["picture"]}
    image = record["feed"].numpy()[None].astype(info["input"]["dtype"])
    if info["results"] == ["raw"]:
        return {"image": image}
    return {"image": image, "output_size": np.array([record["height"], record["width"]])}
