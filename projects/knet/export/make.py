"""From a model to one file with its graph: image tensor in, final results out.

path = export_model(predictor, "model.onnx")
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from knet.errors import UserError
from knet.export.metadata import describe
from knet.export.onnx_file import save_onnx
from knet.export.program import build_graph, output_names, save_program, trace
from knet.predict.files import writable_folder
from knet.predictor import KNetPredictor

__all__ = ["export_model"]


def export_model(
    predictor: KNetPredictor,
    output: str | os.PathLike[str],
    *,
    form: str = "onnx",
    size: Sequence[int] = (320, 416),
    dynamic: Sequence[str] = ("height", "width"),
    input_dtype: str = "uint8",
    half: bool = False,
    raw: bool = False,
    probabilities: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Trace a model and write its file; docs/DEPLOY.md describes inputs, outputs and limits.

    Args:
        predictor: the model; for ONNX it should be on the CPU, where a file for any runtime is
            traced.
        output: the file.
        form: "onnx" or "torch_export".
        size: height and width of the image to trace with, kept for sides that are not dynamic.
        dynamic: sides that may differ from call to call, of `knet.export.program.DYNAMIC`.
        input_dtype: "uint8" or "float32".
        half: float16 but for sums and results.
        raw: class and mask logits in place of results.
        probabilities: with semantic maps, the scores of all classes.
        say: told of each step, with the seconds since the begin.

    Returns:
        The file's path.

    Raises:
        UserError, OSError, ImportError, KeyError, ValueError: what cannot be exported or written.
    """
    out = Path(output)
    # known to be writable before minutes of work
    writable_folder(out.parent, "--output")
    if out.is_dir():
        raise UserError(f"--output {out} is a folder: name a file in it")
    begun = time.monotonic()

    def progress(step: str) -> None:
        say(f"{time.monotonic() - begun:4.0f} s  {step}")

    onnx = form == "onnx"
    cfg = predictor.cfg
    if cfg.TEST.AUG.ENABLED:
        raise ValueError("test-time augmentation is no part of a graph: set TEST.AUG.ENABLED False")
    model: Any = predictor.model
    progress(
        f"tracing with {size[0]} x {size[1]} pixels, "
        f"for any {', '.join(dynamic) or 'picture of this size'}"
    )
    graph = build_graph(
        model,
        channel_order=cfg.INPUT.FORMAT,
        onnx=onnx,
        raw=raw,
        half=half,
        probabilities=probabilities,
    )
    program = trace(
        graph,
        example_size=size,
        dynamic=dynamic,
        input_dtype=getattr(torch, input_dtype),
    )
    metadata = describe(
        cfg,
        predictor.metadata,
        size_divisibility=model.size_divisibility,
        raw=raw,
        half=half,
        input_dtype=input_dtype,
    )
    if onnx:
        save_onnx(program, out, metadata, half=half, progress=progress)
    else:
        progress(f"writing {out}")
        save_program(program, out, metadata)
    progress(f"finished, {out.stat().st_size / 1e6:.1f} MB")
    say(f"outputs: {', '.join(output_names(program))}")
    return out
