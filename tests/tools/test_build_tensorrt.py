"""The script for TensorRT says what it lacks; with a GPU and TensorRT it is run by hand."""

import sys

import build_tensorrt


def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    words = [str(tmp_path / "raw.onnx"), "--output", str(tmp_path / "raw.engine")]
    assert build_tensorrt.main(words) == 2
    assert capsys.readouterr().err == (
        "build_tensorrt.py: error: tensorrt is not installed: pip install tensorrt\n"
    )
    assert list(tmp_path.iterdir()) == []
