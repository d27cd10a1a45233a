"""Writes a traced graph as an ONNX file."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from knet.export.metadata import METADATA_KEY
from knet.export.program import output_names
from knet.files import unfinished_name, whole_file

OPSET = 18
# operators whose inputs are all of one type
_ONE_TYPE = ("Conv", "LayerNormalization", "InstanceNormalization", "GroupNormalization")
# of a protocol buffer; larger models keep their weights in a file beside
_LARGEST = 2**31 - 2**20


def require_onnx() -> None:
    """Raise ImportError, saying what to install, if ONNX files cannot be written."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"ONNX needs {error.name}: run `pip install -e .[export]` in the repository root",
            name=error.name,
        ) from error


def save_onnx(
    program: ExportedProgram,
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    *,
    half: bool = False,
    before: ExportedProgram | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> None:
    """Write an ONNX file with the metadata as its property "knet".

    Weights are within the file, beside it (`<path>.data`) if they take more than 2 GB. Both are
    there whole or not at all.

    Args:
        program: the traced graph.
        path: of the file.
        metadata: for JSON.
        half: as it was traced.
        before: a graph whose outputs become this one's inputs, see `knet.export.picture_graph`.
        progress: is told each step as it begins.

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: an operator that ONNX does not have.
        OSError: the files cannot be written.
    """
    require_onnx()
    progress("translating to ONNX")
    exported = _translated(program, half=half)
    if half:
        _store_float16(exported.model)
    _fold_transposes(exported.model)
    if before is not None:
        exported.model = _joined(_translated(before).model, exported.model)
    model = exported.model
    model.metadata_props[METADATA_KEY] = json.dumps(metadata)
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    progress(f"writing {path}")
    _write(exported, Path(path), external_data=weights > _LARGEST)


def write_onnx(model: Any, path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Write an `onnx.ModelProto` of less than 2 GB with the metadata, whole or not at all."""
    import onnx

    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    with whole_file(path) as unfinished:
        onnx.save(model, unfinished)


def _translated(program: ExportedProgram, *, half: bool = False) -> Any:
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # warns of its own guesses
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            output_names=output_names(program),
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            # the optimiser would give float16 convolutions the float32 biases of batch norms
            optimize=not half,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(
            f"the model cannot be translated to ONNX; --format torch_export may do ({error})"
        ) from error
    assert exported is not None
    return exported


def _joined(before: Any, model: Any) -> Any:
    """One model of both, by the names of the first one's outputs."""
    import onnx_ir as ir

    from knet.export.picture_graph import join

    return ir.from_proto(join(ir.to_proto(before), ir.to_proto(model)))


def _write(exported: Any, path: Path, *, external_data: bool) -> None:
    # the file holds the name of the file beside it, so both get theirs in a folder of their own
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=unfinished_name(path)) as folder:
        written = Path(folder, path.name)
        exported.save(written, external_data=external_data)
        data = Path(f"{written}.data")
        if data.is_file():
            path.unlink(missing_ok=True)  # an older graph must not meet these weights
            with whole_file(f"{path}.data") as unfinished:
                data.replace(unfinished)
        with whole_file(path) as unfinished:
            written.replace(unfinished)


def _stable_sort(
    self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    """`aten.sort.stable` of a vector: ONNX breaks ties in TopK by the lower index, too."""
    from onnxscript import opset18 as op

    return op.TopK(self, op.Shape(self), axis=dim, largest=int(descending), sorted=1)


def _fold_transposes(model: Any) -> None:
    """Weights that are used turned are stored turned.

    OpenVINO's CPU plug-in (2026.4) takes one for the other where a square weight is used both ways.
    """
    import onnx_ir as ir

    graph = model.graph
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or weight.name not in graph.initializers:
            continue
        axes = node.attributes.get("perm")
        values = weight.const_value.numpy()
        turned = values.transpose(axes.as_ints() if axes is not None else None).copy()
        name = f"{weight.name}_turned_{node.outputs[0].name}"
        twin = ir.Value(
            name=name,
            const_value=ir.tensor(turned, name=name),
            type=weight.type,
            shape=ir.Shape(turned.shape),
        )
        graph.register_initializer(twin)
        ir.convenience.replace_all_uses_with(node.outputs[0], twin)
        graph.remove(node, safe=True)
    _remove_unused(graph)


def _remove_unused(graph: Any) -> None:
    for value in list(graph.initializers.values()):
        if not value.uses():
            del graph.initializers[value.name]


def _store_float16(model: Any) -> None:
    """Weights that the graph uses as float16 are stored as such."""
    import onnx_ir as ir

    graph = model.graph
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT16:
            if _is_float32_weight(graph, node.inputs[0]):
                narrow = _float16(graph, node.inputs[0])
                ir.convenience.replace_all_uses_with(node.outputs[0], narrow)
                graph.remove(node, safe=True)
        elif node.op_type in _ONE_TYPE and node.inputs[0].dtype == ir.DataType.FLOAT16:
            # PyTorch mixes types here, ONNX does not
            for i, value in enumerate(node.inputs):
                if value is not None and _is_float32_weight(graph, value):
                    node.replace_input_with(i, _float16(graph, value))
    _remove_unused(graph)


def _is_float32_weight(graph: Any, value: Any) -> bool:
    import onnx_ir as ir

    return value.name in graph.initializers and value.dtype == ir.DataType.FLOAT


def _float16(graph: Any, weight: Any) -> Any:
    """The float16 twin of a weight, which is made if need be."""
    import onnx_ir as ir

    name = f"{weight.name}_float16"
    if name not in graph.initializers:
        values = weight.const_value.numpy().astype("float16")
        twin = ir.Value(
            name=name,
            const_value=ir.tensor(values, name=name),
            type=ir.TensorType(ir.DataType.FLOAT16),
            shape=ir.Shape(values.shape),
        )
        graph.register_initializer(twin)
    return graph.initializers[name]
