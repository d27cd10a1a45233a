"""OpenVINO's files give what ONNX's give, at any size, and have the same metadata."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch

from knet.export import openvino_file
from knet.export.onnx_file import save_onnx
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


class BothWays(torch.nn.Module):
    """A square weight that is used as it is and turned, as that of a round's features is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(64.0).reshape(8, 8))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"turned": image @ self.weight.T, "plain": image @ self.weight}


def test_a_weight_that_is_used_both_ways(tmp_path):
    pytest.importorskip("openvino")
    image = torch.rand(3, 8)
    save_onnx(torch.export.export(BothWays(), (), {"image": image}), tmp_path / "m.onnx", {})
    save_openvino(tmp_path / "m.onnx", tmp_path / "m.xml", {})
    found = open_runtime(str(tmp_path / "m.xml")).run({"image": image.numpy()})
    for name, expected in BothWays()(image).items():
        torch.testing.assert_close(torch.from_numpy(found[name]), expected)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need openvino: run `pip install -e \.\[openvino\]`"):
        require_openvino()
    with pytest.raises(ImportError, match="openvino"):
        openvino_file.save_openvino("x.onnx", "x.xml", {})
