"""`knet export`: what the flags ask for, and the exit status of the check."""

from __future__ import annotations

from pathlib import Path

import pytest

from knet.cli import export as command
from knet.export.check import Report
from knet.export.make import Choices
from knet_command import main


@pytest.fixture
def asked(monkeypatch):
    """Arguments of `export_model`, which gives the report that is put in."""
    calls: dict = {"report": None}

    def export_model(predictor, output, choices, **options):
        calls.update(predictor=predictor, choices=choices, options=options)
        return Path(output), calls["report"]

    monkeypatch.setattr(command, "export_model", export_model)
    monkeypatch.setattr(command, "load_predictor", lambda args, opts: opts)
    return calls


def test_flags_become_choices(asked):
    words = ["export", "--model", "m", "--format", "openvino", "--precision", "int8", "--resize",
             "--pictures", "a", "b", "--size", "64", "72", "--output", "m.xml"]  # fmt: skip
    assert main(words) == 0
    assert asked["choices"] == Choices(
        form="openvino", precision="int8", size=[64, 72], dynamic=["height", "width"],
        takes_picture=True,
    )  # fmt: skip
    assert asked["options"]["pictures"] == ["a", "b"] and asked["options"]["checked"]
    assert asked["predictor"] == ["MODEL.DEVICE", "cpu"]
    assert main(["export", "--model", "m", "--no-check", "--output", "m.onnx"]) == 0
    assert not asked["options"]["checked"]


@pytest.mark.parametrize("holds", [True, False])
def test_the_status_is_that_of_the_check(asked, capsys, holds):
    asked["report"] = Report([("boxes", "", "90 %", "98 %", holds), ("size", "1", "2", "", None)])
    status = main(["export", "--model", "m", "--output", "m.onnx", "--data", "mine"])
    assert status == (0 if holds else 1) and asked["options"]["data"] == "mine"
    said = capsys.readouterr().out
    assert "boxes" in said and "tolerance" in said
    assert ("m.onnx is not as the model: boxes\n" in said) != holds


def test_data_without_a_check_is_an_error(asked, capsys):
    words = ["export", "--model", "m", "--output", "m.onnx", "--data", "mine", "--no-check"]
    assert main(words) == 2
    assert "knet export: error: --data is to be scored on" in capsys.readouterr().err
