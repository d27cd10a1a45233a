"""Writes a graph as OpenVINO's two files, out of its ONNX file."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from knet.export.metadata import METADATA_KEY
from knet.export.quantize import Feeds, quantize_openvino
from knet.files import unfinished_name, whole_file


def require_openvino(*, int8: bool = False) -> None:
    """Raise ImportError, saying what to install, if OpenVINO (and NNCF) cannot be imported."""
    for name in ("openvino", "nncf")[: 1 + int8]:
        if importlib.util.find_spec(name) is None:  # the second takes seconds to import
            raise ImportError(
                f"OpenVINO files need {name}: run `pip install -e .[openvino]` in the repository "
                "root",
                name=name,
            )


def save_openvino(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    *,
    half: bool = False,
    calibration: Sequence[Feeds] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> None:
    """Write `path`, the graph, and beside it `.bin`, its weights; the first is there last.

    Args:
        source: an ONNX file in float32.
        path: ends with .xml.
        metadata: becomes the runtime information "knet".
        half: weights in float16; the device chooses the precision that it computes in.
        calibration: inputs of the graph by which it is brought to eight bits; none for none.
        progress: is told each step as it begins.

    Raises:
        ImportError: see `require_openvino`.
        OSError: the files cannot be written.
    """
    require_openvino(int8=bool(calibration))
    import openvino

    progress("translating to OpenVINO")
    model = openvino.Core().read_model(os.fspath(source))  # convert_model would tell its makers
    if calibration:
        progress(f"eight bits, by {len(calibration)} pictures")
        model, count = quantize_openvino(model, source, calibration)
        progress(f"{count} convolutions are in eight bits")
    model.set_rt_info(json.dumps(metadata), [METADATA_KEY])
    progress(f"writing {path}")
    target = Path(path)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=unfinished_name(target)) as folder:
        written = Path(folder, target.name)
        openvino.save_model(model, written, compress_to_fp16=half)
        target.unlink(missing_ok=True)  # an older graph must not meet these weights
        for suffix in (".bin", ".xml"):
            with whole_file(target.with_suffix(suffix)) as unfinished:
                written.with_suffix(suffix).replace(unfinished)
