"""tools/export.py from a predictor's folder to a file, and its messages."""

from __future__ import annotations

import json

import export
import pytest
import torch

from knet.export.program import load_program

from .models import scene, small_cfg, small_predictor


def test_exports_a_predictor_folder(tmp_path, capsys):
    predictor = small_predictor(small_cfg("instance"), "instance")
    predictor.save_pretrained(tmp_path / "folder")
    out = tmp_path / "sub" / "model.pt2"
    arguments = ["--predictor", tmp_path / "folder", "--format", "torch_export", "--raw",
                 "--size", "64", "72", "--output", out]  # fmt: skip
    assert export.main([*map(str, arguments), "TEST.DETECTIONS_PER_IMAGE", "7"]) == 0
    assert "mask_logits, class_logits" in capsys.readouterr().out
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
        with pytest.raises(SystemExit) as stopped:
            export.main([*map(str, arguments)])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    out = tmp_path / "model.onnx"
    assert "no folder" in message("--predictor", tmp_path / "none", "--output", out)
    assert not out.exists()
    assert "none.yaml" in message("--config-file", tmp_path / "none.yaml", "--output", out)
    folder = tmp_path / "folder"
    predictor = small_predictor(small_cfg("instance"), "instance")
    predictor.save_pretrained(folder)
    opts = ["TEST.AUG.ENABLED", "True"]
    assert "TEST.AUG.ENABLED" in message("--predictor", folder, "--output", out, *opts)
    blocked = tmp_path / "file"
    blocked.write_text(json.dumps({}))
    assert "file" in message("--predictor", folder, "--output", blocked / "model.onnx")
    assert blocked.read_text() == "{}"
