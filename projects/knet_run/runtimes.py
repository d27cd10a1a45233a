"""The two runtimes behind one interface: arrays by name in, arrays by name out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

# the property of an ONNX file, and the runtime information of an OpenVINO model
METADATA_KEY = "knet"


class Runtime(Protocol):
    """A loaded graph.

    Attributes:
        inputs: shapes by name; a side that may differ from call to call is no number.
        outputs: names, in their order.
        metadata: of `knet export`, as text; None if the file has none.
    """

    inputs: dict[str, list[Any]]
    outputs: list[str]
    metadata: str | None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...


def open_runtime(
    path: str, *, devices: Sequence[str] | None = None, threads: int | None = None
) -> Runtime:
    """Load an ONNX file with onnxruntime, or an OpenVINO model (.xml, its weights beside it).

    Args:
        path: of the file.
        devices: to run on, the best first: providers of onnxruntime such as
            CUDAExecutionProvider, by default all that it has; one device of OpenVINO such as GPU,
            by default the CPU.
        threads: on the CPU; by default the runtime's choice.

    Raises:
        ValueError: naming the file, if it is none that the runtime reads.
        ImportError: the runtime is not installed; says what to install.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    if path.lower().endswith(".xml"):
        return OpenVINO(path, devices, threads)
    return OnnxRuntime(path, devices, threads)


class OnnxRuntime:
    """An ONNX file in onnxruntime; arguments and errors as of `open_runtime`."""

    def __init__(self, path: str, devices: Sequence[str] | None, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"{path} needs onnxruntime: pip install onnxruntime") from error
        available = onnxruntime.get_available_providers()
        if set(devices or ()) - set(available):
            raise ValueError(f"this onnxruntime has {available}, not {list(devices or ())}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # warns of its own optimisations
        if threads:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=devices or available
            )
            properties = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # the library's own kinds have no common base
            raise ValueError(f"{path} cannot be read as an ONNX model: {error}") from error
        self.inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self.outputs = [value.name for value in self._session.get_outputs()]
        self.metadata: str | None = properties.get(METADATA_KEY)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; the library's own errors."""
        return dict(zip(self.outputs, self._session.run(None, feeds)))


class OpenVINO:
    """An OpenVINO model; arguments and errors as of `open_runtime`."""

    def __init__(self, path: str, devices: Sequence[str] | None, threads: int | None) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ImportError(f"{path} needs openvino: pip install openvino") from error
        core = openvino.Core()
        device = (devices or ["CPU"])[0]
        if device.partition(".")[0] not in core.available_devices:
            raise ValueError(f"this openvino finds {core.available_devices}, not {device}")
        try:
            model = core.read_model(path)
            place = [METADATA_KEY]
            text = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None
            config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
            if threads and device == "CPU":
                config["INFERENCE_NUM_THREADS"] = threads
            if '"precision": "float16"' not in (text or ""):
                # of itself it rounds to 16 bits where the device is faster with them
                config["INFERENCE_PRECISION_HINT"] = "f32"
            self._model = core.compile_model(model, device, config)
        except Exception as error:  # the library's own kinds have no common base
            raise ValueError(f"{path} cannot be read as an OpenVINO model: {error}") from error
        self.metadata: str | None = text
        self.inputs = {
            value.get_any_name(): [
                side.get_length() if side.is_static else None for side in value.partial_shape
            ]
            for value in self._model.inputs
        }
        self.outputs = [value.get_any_name() for value in self._model.outputs]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; the library's own errors."""
        results = self._model(dict(feeds))
        # its memory is written anew by the next call
        return {name: np.array(results[name]) for name in self.outputs}
