"""Files that a runtime cannot open are named in one line."""

from __future__ import annotations

import sys

import pytest

from knet_run.runtimes import open_runtime


@pytest.mark.parametrize(("name", "package"), [("m.onnx", "onnxruntime"), ("m.xml", "openvino")])
def test_a_runtime_that_is_not_installed(name, package, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{name} needs {package}: pip install {package}"):
        open_runtime(str(tmp_path / name))


def test_files_that_end_early(panoptic, tmp_path):
    pytest.importorskip("onnxruntime")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(panoptic.onnx.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"cut\.onnx cannot be read as an ONNX model"):
        open_runtime(str(cut))
    pytest.importorskip("openvino")
    (tmp_path / "cut.xml").write_text("<net name='x'")
    with pytest.raises(ValueError, match=r"cut\.xml cannot be read as an OpenVINO model"):
        open_runtime(str(tmp_path / "cut.xml"))


def test_devices_that_are_not_there(panoptic, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=r"this onnxruntime has .*, not \['NoProvider'\]"):
        open_runtime(str(panoptic.onnx), devices=["NoProvider"])
    pytest.importorskip("openvino")
    (tmp_path / "m.xml").write_text("")
    with pytest.raises(ValueError, match=r"this openvino finds .*, not NPX"):
        open_runtime(str(tmp_path / "m.xml"), devices=["NPX"])
