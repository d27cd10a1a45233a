"""Eight bits: convolutions of an exported graph with integer weights and maps, by pictures.

What takes the time of a K-Net on a CPU is its backbone and neck; they become integers. What decides
is small and stays in float: the kernels and their updates, the class branches, the masks that the
kernels give, and all after them. docs/DEPLOY.md has what each part costs.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from knet.export.onnx_file import write_onnx

__all__ = ["integer_layers", "quantize_onnx", "quantize_openvino"]

# modules whose convolutions become integers, found by `benchmarks/exports.py --what layers`
INTEGER = ("backbone", "heads.neck")
_PRODUCTS = ("MatMul", "Gemm")
_BETWEEN = ("Add", "Relu", "MaxPool")
_SCOPES = "pkg.torch.onnx.name_scopes"

Feeds = Mapping[str, np.ndarray]


def integer_layers(
    path: str | os.PathLike[str],
    *,
    integer: Sequence[str] = INTEGER,
    keep: Sequence[str] = (),
    products: bool = False,
) -> tuple[list[str], list[str]]:
    """Nodes of an ONNX file of `knet.export.onnx_file` that become integers.

    Args:
        path: of the file.
        integer: modules whose convolutions become integers.
        keep: modules among them whose convolutions stay in float.
        products: take matrix products for convolutions, too.

    Returns:
        Names of the convolutions, and of what stands between them: a runtime joins both if neither
        goes through floats.
    """
    import onnx

    convolutions, between = [], []
    for node in onnx.load(path, load_external_data=False).graph.node:
        scope = _module(node)
        if not _below(scope, integer) or _below(scope, keep):
            continue
        if node.op_type == "Conv" or (products and node.op_type in _PRODUCTS):
            convolutions.append(node.name)
        elif node.op_type in _BETWEEN:
            between.append(node.name)
    return convolutions, between


def quantize_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    feeds: Sequence[Feeds],
    metadata: Mapping[str, Any],
    *,
    integer: Sequence[str] = INTEGER,
    keep: Sequence[str] = (),
    products: bool = False,
) -> int:
    """Write an ONNX file whose convolutions compute in eight bits, for onnxruntime.

    Args:
        source: of `save_onnx`, in float32.
        target: to write, whole or not at all.
        feeds: inputs of the graph, of the pictures whose values give the ranges.
        metadata: for JSON.
        integer, keep, products: as of `integer_layers`.

    Returns:
        How many convolutions became integers.

    Raises:
        OSError: the file cannot be written.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    convolutions, between = integer_layers(source, integer=integer, keep=keep, products=products)
    with _no_advice(), tempfile.TemporaryDirectory(dir=Path(source).parent) as folder:
        written = Path(folder, "int8.onnx")
        quantize_static(
            Path(source),
            written,
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=[*convolutions, *between],
            op_types_to_quantize=["Conv", *_PRODUCTS, *_BETWEEN],
            per_channel=True,
            # processors without VNNI overflow at products with weights of all eight bits
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        write_onnx(onnx.load(written), target, metadata)
    return len(convolutions)


def quantize_openvino(
    model: Any, source: str | os.PathLike[str], feeds: Sequence[Feeds]
) -> tuple[Any, int]:
    """An OpenVINO model whose convolutions compute in eight bits, by NNCF.

    Args:
        model: of the ONNX file `source`, in float32.
        source: the file.
        feeds: as of `quantize_onnx`.

    Returns:
        The model, and how many convolutions became integers.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else it tells its makers of every use
    import nncf

    nncf.set_log_level(logging.ERROR)
    chosen, between = integer_layers(source)
    # a sum or a product in the rounds would become integers, too
    wanted = {name for node in (*chosen, *between) for name in (node, f"{node}/WithoutBiases")}
    names = {op.get_friendly_name() for op in model.get_ops()}
    ignored = nncf.IgnoredScope(names=sorted(names - wanted), validate=False)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(feeds), dict),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(feeds),
        ignored_scope=ignored,
    )
    return quantized, len(chosen)


class _Reader:
    """Hands feeds to onnxruntime's calibration."""

    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Within, onnxruntime does not tell the root logger that a model could be prepared."""

    def wanted(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    logging.getLogger().addFilter(wanted)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(wanted)


def _module(node: Any) -> str:
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = [s for s in ast.literal_eval(entry.value) if isinstance(s, str)]
            return max(scopes[:-1], key=len, default="")
    return ""


def _below(scope: str, modules: Sequence[str]) -> bool:
    return any(scope == module or scope.startswith(f"{module}.") for module in modules)
