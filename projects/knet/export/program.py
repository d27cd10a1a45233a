"""Traces a graph for any image size, and writes it for `torch.export`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import _DimHint

from knet.export.graph import MaskGraph, SemanticGraph
from knet.export.image_graph import ImageGraph, RawGraph
from knet.export.lowering import constant_padding, plain_attention
from knet.export.metadata import METADATA_KEY
from knet.files import whole_file

__all__ = ["load_program"]

DYNAMIC = ("batch", "height", "width")


def build_graph(
    model: Any,
    *,
    channel_order: str,
    onnx: bool,
    raw: bool = False,
    half: bool = False,
    probabilities: bool = False,
    least_output: int = 1,
) -> ImageGraph:
    """The graph of a `KNet`, which stays as it is.

    Args:
        model: `KNet`.
        channel_order: INPUT.FORMAT of its config.
        onnx: whether every operator must exist in ONNX.
        raw: logits rather than results.
        half, least_output: see `ImageGraph`.
        probabilities: with semantic maps, the scores of all classes.

    Raises:
        ValueError: something of the model or the request cannot be exported; says what.
    """
    if raw and probabilities:
        raise ValueError("logits (--raw) are no probabilities: ask for one of the two")
    if model.window is not None and not raw:
        raise ValueError(
            "windows are not part of a graph: set MODEL.KNET.TEST.WINDOW.SIZE to (), or export "
            "with --raw and slide the windows yourself"
        )
    if raw:
        return RawGraph(model, onnx=onnx, channel_order=channel_order, half=half).eval()
    graph = MaskGraph if hasattr(model.task, "options") else SemanticGraph
    return graph(
        model,
        onnx=onnx,
        channel_order=channel_order,
        half=half,
        least_output=least_output,
        probabilities=probabilities,
    ).eval()


@torch.no_grad()
def trace(
    graph: ImageGraph,
    *,
    example_size: Sequence[int],
    dynamic: Sequence[str] = ("height", "width"),
    input_dtype: torch.dtype = torch.uint8,
) -> ExportedProgram:
    """Trace a graph.

    Args:
        graph: of `build_graph`.
        example_size: (height, width) of the image to trace with; sides that are not dynamic keep
            it.
        dynamic: those of `DYNAMIC` that may differ from call to call; "batch" with raw graphs.
        input_dtype: of the image.

    Raises:
        ValueError: an unknown or impossible choice.
    """
    raw = isinstance(graph, RawGraph)
    unknown = set(dynamic) - set(DYNAMIC)
    if unknown or ("batch" in dynamic and not raw):
        raise ValueError(
            f"dynamic sides are {', '.join(DYNAMIC)}, batch with --raw only (tables differ in "
            f"length from image to image); not {', '.join(dynamic)}"
        )
    # timm makes their grid of plain numbers, which would bind the graph to one size without a word
    rotary = any(type(m).__name__ == "RotaryEmbeddingDinoV3" for m in graph.modules())
    if rotary and {"height", "width"} & set(dynamic):
        raise ValueError(
            "the rotary positions of DINOv3 can be traced for one size only: without dynamic "
            "height and width, from an image of the size that is wanted"
        )
    least = graph.size_divisibility + 1
    if min(example_size) < least:
        raise ValueError(
            f"an image of {example_size[0]} x {example_size[1]} is too small to trace this model: "
            f"sides must be {least} or more"
        )
    device = graph.pixel_mean.device
    # two images, as a batch of one would be taken for a constant
    batch = 2 if "batch" in dynamic else 1
    channels = len(graph.pixel_mean)
    image = torch.randint(0, 256, (batch, channels, *example_size), device=device).to(input_dtype)
    dims: dict[int, _DimHint] = {
        axis: Dim.AUTO for axis, name in ((0, "batch"), (2, "height"), (3, "width"))
        if name in dynamic
    }  # fmt: skip
    inputs: dict[str, Tensor] = {"image": image}
    shapes: dict[str, Any] = {"image": dims or None}
    if not raw:
        inputs["output_size"] = torch.tensor([example_size[0] + 7, example_size[1] + 11])
        shapes["output_size"] = None
    with plain_attention(), constant_padding():
        program = torch.export.export(
            graph,
            (),
            inputs,
            dynamic_shapes=shapes,
            strict=False,
            # sizes of images are checked when the graph runs, not proven when it is traced
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    _check_dynamic(program, dims)
    return program


def output_names(program: ExportedProgram) -> list[str]:
    """Names of the outputs in their order."""
    spec = program.call_spec.out_spec
    assert spec is not None
    return list(spec.context)


def save_program(
    program: ExportedProgram, path: str | os.PathLike[str], metadata: Mapping[str, Any]
) -> None:
    """Write a file for `torch.export.load`, with the metadata as its extra file "knet"."""
    with whole_file(path) as unfinished:
        torch.export.save(program, unfinished, extra_files={METADATA_KEY: json.dumps(metadata)})


def load_program(path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """The graph as a module and its metadata, out of a file of `save_program`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it was not written by `save_program`, or is broken.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file")
    extra: dict[str, Any] = {METADATA_KEY: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
        return program.module(), json.loads(extra[METADATA_KEY])
    except Exception as error:  # PyTorch's reader raises anything at a broken archive
        raise ValueError(
            f"{os.fspath(path)} is no whole file of knet export --format torch_export: export "
            f"the model again ({type(error).__name__}: {error})"
        ) from error


def _check_dynamic(program: ExportedProgram, dims: Mapping[int, Any]) -> None:
    """Tracing with `Dim.AUTO` may fix a side silently; this raises instead."""
    image = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == "image")
    shape = image.meta["val"].shape
    ranges = program.range_constraints
    for axis in dims:
        symbol = getattr(getattr(shape[axis], "node", None), "expr", None)
        span = ranges.get(symbol) if symbol is not None else None
        if symbol is None or (span is not None and span.lower == span.upper):
            raise RuntimeError(
                f"the {dict(zip((0, 2, 3), DYNAMIC))[axis]} of the image was fixed to "
                f"{shape[axis]} while tracing: something in the model depends on it"
            )
