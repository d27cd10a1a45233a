"""What is measured on a GPU runs on a CPU as well, in tiny sizes."""

import json
from dataclasses import replace

import benchmark
import gpu
import pytest
import torch

from knet.errors import UserError

HAS_GPU = torch.cuda.is_available()


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_without_a_gpu_there_is_one_clear_error():
    with pytest.raises(UserError, match="--gpu: torch finds no GPU; --count counts without one"):
        benchmark.main(["--gpu"])


@pytest.mark.slow
def test_every_measurement_gives_its_row(tiny_work, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "_LONG_ENOUGH", 0.1)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    result, path = {}, tmp_path / "gpu.json"
    opts = ("MODEL.KNET.NUM_ROUNDS", "1", "MODEL.SMALL_RESNET.BLOCKS", "[1, 1, 1, 1]")
    work = replace(tiny_work, opts=(*tiny_work.opts, *opts))
    gpu.measure_gpu(
        work, result, repeats=1, path=path, precisions=("bfloat16",), batches=(2,), seconds=0.5
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "s left] real loop: bfloat16, batch 2" in out and "transformers is not" in out
    assert json.loads(path.read_text()) == result
    kinds = ("accelerated", "plain")
    assert [row[""] for row in result["inference"]] == [f"bfloat16, batch 2, {k}" for k in kinds]
    for row in result["inference"]:
        parts = ("first, s", "whole, ms", "forward, ms", "post-processing, ms", "images/s")
        assert all(row[part] > 0 for part in parts) and row["kernels"] > 100
    for row in result["training"]:
        assert row["step, ms"] > 0 and row["peak, GB"] > 0 and row["kernels"] > 1000
        assert row["forward and losses, ms"] > 0 and row["backward and AdamW, ms"] > 0
    assert sum("12,544 points" in row[""] for row in result["training"]) == 2
    (loop,) = result["real loop"]
    assert loop["steps"] > 0 and loop["images/s"] > 0 and 0 <= loop["waiting for data, %"] < 100


def test_what_fails_or_finds_no_time_has_a_note(tiny_work, capsys, monkeypatch):
    def fail():
        raise RuntimeError("out of memory\n" + "and a long story" * 20)

    jobs = [gpu.Job("a", "works", 1, lambda: {"ms": 1.0}), gpu.Job("a", "fails", 1, fail),
            gpu.Job("a", "long", 61, fail)]  # fmt: skip
    monkeypatch.setattr(gpu, "plan", lambda *_: jobs)
    result = {}
    with pytest.raises(UserError, match="1 of 3 measurements failed"):
        gpu.measure_gpu(tiny_work, result, repeats=1, minutes=1)
    assert [row.get("note") for row in result["a"]] == [
        None, "RuntimeError: " + ("out of memory " + "and a long story" * 20)[:100],
        "left out: no time",
    ]  # fmt: skip
    captured = capsys.readouterr()
    assert "| fails |  | RuntimeError: out of memory and a long" in captured.out
    assert "and a long story" * 20 in captured.err


def test_all_of_it_should_fit_into_six_minutes(tiny_work, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name)
    jobs = gpu.plan(replace(tiny_work, batch=16), 12, gpu.PRECISIONS, (1, 8), 60.0)
    assert 300 < sum(job.expected for job in jobs) <= 360
    assert len({(job.table, job.name) for job in jobs}) == len(jobs)


def test_tf32_is_on_only_while_it_is_asked_for():
    backend = torch.backends.cuda.matmul
    before = backend.allow_tf32
    for precision, wanted in (("float32", False), ("TF32", True), ("bfloat16", before)):
        with gpu.computing_in(precision, "cpu"):
            assert backend.allow_tf32 is wanted
        assert backend.allow_tf32 is before


def test_mask2former_has_confident_queries(tiny_work):
    pytest.importorskip("transformers")
    row = gpu.infer_mask2former(
        replace(tiny_work, batch=1), "float32", 1, 7, encoder_layers=1, decoder_layers=2
    )
    assert 25 <= row["confident queries"] <= 35 and row["post-processing, ms"] > 0
