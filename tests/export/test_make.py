"""`knet export` from a predictor's folder to a file, and its messages."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from knet.errors import UserError
from knet.export import onnx_file
from knet.export.check import TOLERANCES
from knet.export.compare import LOGITS
from knet.export.make import Choices, export_model
from knet.export.program import load_program, save_program
from knet_command import main

from .models import scene, small_cfg, small_predictor


def test_exports_a_predictor_folder(tmp_path, capsys, monkeypatch):
    predictor = small_predictor(small_cfg("instance"), "instance")
    predictor.save_pretrained(tmp_path / "folder")
    out = tmp_path / "sub" / "model.pt2"
    monkeypatch.setitem(TOLERANCES["float32"], LOGITS, 0.0)
    arguments = ["export", "--model", tmp_path / "folder", "--format", "torch_export", "--raw",
                 "--size", "64", "72", "--output", out]  # fmt: skip
    status = main([*map(str, arguments), "TEST.DETECTIONS_PER_IMAGE", "7"])
    told = capsys.readouterr().out
    assert "outputs: mask_logits, class_logits" in told
    assert "checking on 4 drawn scenes" in told
    assert f"{LOGITS.name}  " in told and "time of a picture, ms" in told
    # not the last bit may differ: whether it does is the processor's business
    assert status == ("beyond" in told)
    program, metadata = load_program(out)
    assert metadata["results"] == ["raw"]
    assert [c["name"] for c in metadata["classes"]] == ["disc", "square", "ring", "star"]
    image = torch.from_numpy(scene(60, 90, 1).transpose(2, 0, 1).copy())
    results = program(image=image[None])
    with torch.no_grad():
        bgr = image.flip(0)
        predictions = predictor.model.predict([{"image": bgr}])[0]
    scores = results["class_logits"][0].sigmoid()
    torch.testing.assert_close(scores, predictions.class_scores, rtol=0, atol=1e-5)


def test_wrong_calls_end_with_a_message(tmp_path, capsys):
    def message(*arguments: object) -> str:
        assert main(["export", *map(str, arguments)]) == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("knet export: error: ")
        return line

    out = tmp_path / "model.onnx"
    assert "no folder" in message("--model", tmp_path / "none", "--output", out)
    assert "none.yaml" in message("--config-file", tmp_path / "none.yaml", "--output", out)
    assert not out.exists()
    folder = tmp_path / "folder"
    predictor = small_predictor(small_cfg("instance"), "instance")
    predictor.save_pretrained(folder)
    opts = ["TEST.AUG.ENABLED", "True"]
    assert "TEST.AUG.ENABLED" in message("--model", folder, "--output", out, *opts)
    blocked = tmp_path / "file"
    blocked.write_text(json.dumps({}))
    assert "file" in message("--model", folder, "--output", blocked / "model.onnx")
    assert blocked.read_text() == "{}"
    assert "is a folder" in message("--model", folder, "--output", tmp_path)


@pytest.mark.parametrize(
    ("choices", "opts", "told"),
    [
        ({"form": "openvino"}, [], "a file of openvino ends with .xml"),
        ({"form": "torch_export", "precision": "int8"}, [], "torch_export cannot be int8: choose"),
        ({"form": "aot_inductor", "takes_picture": True}, [], "aot_inductor cannot be with the"),
        ({"takes_picture": True, "raw": True}, [], "--resize goes without --raw"),
        ({"takes_picture": True}, ["INPUT.CONTRAST_CUTOFF", "1.0"], "INPUT.CONTRAST_CUTOFF"),
        ({"precision": "int8"}, [], "int8 takes its ranges from pictures: name some"),
    ],
)
def test_what_cannot_be_exported_is_told_before_the_work(choices, opts, told, tmp_path):
    predictor = small_predictor(small_cfg("instance", *opts), "instance")
    choices = Choices(**choices)
    ending = ".onnx" if choices.form in ("onnx", "openvino") else ".pt2"
    with pytest.raises(UserError, match=told.replace(".", r"\.")):
        export_model(predictor, tmp_path / f"model{ending}", choices)
    assert not list(tmp_path.iterdir())


class Sums(nn.Module):
    """A graph with one weight, quick to trace."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(600.0).reshape(2, 300))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sums": self.weight @ image}


@pytest.fixture(scope="module")
def sums():
    return torch.export.export(Sums(), (torch.ones(300, 3),))


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_stopped_export_leaves_what_was_there(form, sums, tmp_path, monkeypatch):
    out = tmp_path / f"model.{form}"

    def full(*arguments, **options):
        assert out.read_text() == "of before"
        raise OSError(28, "No space left on device")

    out.write_text("of before")
    if form == "onnx":
        pytest.importorskip("onnxscript")
        monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    else:
        monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="No space"):
        (onnx_file.save_onnx if form == "onnx" else save_program)(sums, out, {})
    assert out.read_text() == "of before" and list(tmp_path.iterdir()) == [out]


def test_weights_beside_a_file_are_found_by_it(sums, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_file, "_LARGEST", 1000)
    out = tmp_path / "model.onnx"
    image = torch.rand(300, 3)
    for _ in range(2):  # the second in place of the first
        onnx_file.save_onnx(sums, out, {})
        assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
        assert out.stat().st_size < 2400 <= (tmp_path / "model.onnx.data").stat().st_size
    (result,) = onnxruntime.InferenceSession(out).run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), Sums()(image)["sums"])


def test_a_file_that_is_no_program_is_named(tmp_path):
    path = tmp_path / "model.pt2"
    with pytest.raises(FileNotFoundError, match=r"model\.pt2"):
        load_program(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"model\.pt2 is no whole file"):
        load_program(path)
