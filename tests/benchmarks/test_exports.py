"""The benchmark of exported files: its numbers are of what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exports import FILES, LAYERS, main, parse, results_of, show, time_in_turns
from workload import make_model

from knet.export.make import FORMS, PRECISIONS
from knet.predictor import KNetPredictor


def test_all_forms_and_layers_are_there():
    assert {form for form, _ in FILES.values()} == set(FORMS) - {"torch_export"}
    assert {precision for _, precision in FILES.values()} == set(PRECISIONS)
    assert [integer for integer, _ in LAYERS.values()][-1] == ["backbone", "heads"]
    args = parse(["--model", "m", "--files", "ONNX", "--size", "80", "90"])
    assert args.files == ["ONNX"] and args.size == [80, 90] and args.what == ["times"]
    with pytest.raises(SystemExit):
        parse(["--model", "m", "--config-file", "c"])


class Graph:
    """In place of a file: one segment, the left half."""

    info = {"input": {"name": "image", "dtype": "uint8"}, "results": ["panoptic"]}
    calls = 0

    def __call__(self, feeds):
        Graph.calls += 1
        height, width = feeds["output_size"]
        ids = np.zeros((height, width), np.int32)
        ids[:, : width // 2] = 1
        table = {"ids": [1], "classes": [2], "isthing": [True], "scores": [0.5], "areas": [6]}
        return {"panoptic_ids": ids, **{f"segment_{k}": np.array(v) for k, v in table.items()}}


def test_a_file_gives_detectron2s_results_and_is_timed(monkeypatch, tiny_work, capsys):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    record = {"image": image, "feed": image, "height": 3, "width": 4}
    ids, segments = results_of(Graph())(record)["panoptic_seg"]
    assert ids.tolist() == [[1, 1, 0, 0]] * 3 and segments[0]["category_id"] == 2
    before = Graph.calls
    cfg, model = make_model(tiny_work, accelerated=False)
    predictor = KNetPredictor(cfg, model, None)
    seconds = time_in_turns(predictor, {"ONNX": Graph()}, record, 2)
    assert {name: len(times) for name, times in seconds.items()} == {
        "PyTorch": 2, "PyTorch, plain": 2, "ONNX": 2,
    }  # fmt: skip
    assert Graph.calls == before + 3
    show([{"": "a", "ms": 1.23456}, {"": "b", "MB": 2.0}])
    table = capsys.readouterr().out
    assert "| 1.235 |" in table and "| b" in table and callable(main)
