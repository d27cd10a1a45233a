"""OpenVINO's files give what ONNX's give, at any size, and have the same metadata."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from knet.export import openvino_file
from knet.export.openvino_file import require_openvino, save_openvino
from knet_run.runtimes import open_runtime

from .models import scene

pytestmark = pytest.mark.export


def test_they_are_equal_at_three_sizes(panoptic, tmp_path):
    pytest.importorskip("openvino")
    source, path = open_runtime(str(panoptic.onnx)), tmp_path / "model.xml"
    told: list[str] = []
    metadata = json.loads(source.metadata)
    path.write_text("of before")
    save_openvino(panoptic.onnx, path, metadata, progress=told.append)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert told == ["translating to OpenVINO", f"writing {path}"]
    model = open_runtime(str(path), threads=1)
    assert json.loads(model.metadata) == metadata and model.outputs == source.outputs
    assert model.inputs == {"image": [1, 3, None, None], "output_size": [2]}
    for seed, (size, output) in enumerate([((96, 96), (96, 96)), ((64, 131), (150, 300)),
                                           ((130, 75), (1, 1))]):  # fmt: skip
        image = scene(*size, seed).transpose(2, 0, 1)[None].copy()
        feeds = {"image": image, "output_size": np.array(output)}
        found, expected = model.run(feeds), source.run(feeds)
        for name, values in expected.items():
            assert found[name].shape == values.shape and found[name].dtype == values.dtype
            same = np.isclose(found[name].astype(float), values.astype(float), atol=1e-4)
            assert same.mean() >= 0.999, name


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need openvino: run `pip install -e \.\[openvino\]`"):
        require_openvino()
    with pytest.raises(ImportError, match="openvino"):
        openvino_file.save_openvino("x.onnx", "x.xml", {})
