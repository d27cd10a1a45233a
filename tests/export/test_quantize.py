"""Eight bits: which layers become integers, and that results stay near."""

from __future__ import annotations

import json

import numpy as np
import pytest

from knet.export.openvino_file import save_openvino
from knet.export.quantize import integer_layers, quantize_onnx
from knet_run.runtimes import open_runtime

from .models import scene

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def feeds():
    return [
        {
            "image": scene(64, 80, i).transpose(2, 0, 1)[None].copy(),
            "output_size": np.array([64, 80]),
        }
        for i in range(3)
    ]


def assert_near(model, source, feeds):
    for fed in feeds:
        found, expected = model.run(fed), source.run(fed)
        same = found["semantic_classes"] == expected["semantic_classes"]
        assert same.mean() > 0.8
        assert np.abs(found["semantic_scores"] - expected["semantic_scores"]).max() > 1e-4


def test_backbone_and_neck_become_integers_in_onnx(panoptic, feeds, tmp_path):
    convolutions, between = integer_layers(panoptic.onnx)
    graph = onnx.load(panoptic.onnx).graph
    kinds = {node.name: node.op_type for node in graph.node}
    assert {kinds[name] for name in convolutions} == {"Conv"}
    assert {kinds[name] for name in between} <= {"Add", "Relu", "MaxPool"}
    # what makes the first masks and kernels, and the rounds, stays in float
    others = len([k for k in kinds.values() if k == "Conv"]) - len(convolutions)
    assert len(convolutions) == 21 and others == 4
    source = open_runtime(str(panoptic.onnx))
    metadata = json.loads(source.metadata)
    path = tmp_path / "int8.onnx"
    assert quantize_onnx(panoptic.onnx, path, feeds, metadata) == len(convolutions)
    assert [file.name for file in tmp_path.iterdir()] == ["int8.onnx"]
    weights = [w for w in onnx.load(path).graph.initializer if w.data_type == onnx.TensorProto.INT8]
    kernels = [onnx.numpy_helper.to_array(w) for w in weights if len(w.dims) == 4]
    assert len(kernels) == len(convolutions)
    # seven bits, with which sums of two products fit into sixteen on processors without VNNI
    assert max(np.abs(w.astype(int)).max() for w in kernels) <= 64
    model = open_runtime(str(path))
    assert json.loads(model.metadata) == metadata
    assert_near(model, source, feeds)


def test_the_same_in_openvino(panoptic, feeds, tmp_path):
    pytest.importorskip("nncf")
    source = open_runtime(str(panoptic.onnx))
    path, told = tmp_path / "int8.xml", []
    save_openvino(
        panoptic.onnx, path, json.loads(source.metadata), calibration=feeds, progress=told.append
    )
    assert told[1:3] == ["eight bits, by 3 pictures", "21 convolutions are in eight bits"]
    text = path.read_text()
    assert text.count('type="Convolution"') == 25
    # of a convolution's weights; those of its maps are FakeQuantize
    assert text.count('element_type="i8"') == 21
    assert_near(open_runtime(str(path)), source, feeds)
