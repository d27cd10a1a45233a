"""The benchmark runs, and its sides, turns, memory figures and tables are right."""

import json
import re
from functools import partial

import benchmark
import comparison
import pytest
import torch
from workload import peak_memory, table

from ..processes import CONTEXT, call


@pytest.fixture
def small(tiny_work):
    sizes = (tiny_work.size, tiny_work.output_size)
    (height, width), (rows, columns) = (map(str, size) for size in sizes)
    return ["--config-file", tiny_work.config_file, "--size", height, width,
            "--output-size", rows, columns, "--objects", "5", "--repeats", "2"]  # fmt: skip


@pytest.mark.slow
def test_quick_run_ends_with_the_three_ratios(tmp_path, capsys, monkeypatch, small, tiny_work):
    path = tmp_path / "result.json"
    monkeypatch.setattr("multiprocessing.get_context", lambda method: CONTEXT)
    benchmark.main(["--quick", *small, "--json", str(path), *tiny_work.opts])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    number = r"\d+\.\d\d"
    assert re.fullmatch(rf"inference {number} training {number} memory {number}", last)
    result = json.loads(path.read_text())
    assert result["same pixels"] > 0.999
    assert result["largest relative difference of a loss"] < 1e-4
    assert [row[""] for row in result["times"]] == [
        "whole image", "heads + post-processing", "training step",
    ]  # fmt: skip
    columns = ("accelerated, ms", "plain, ms", "reference, ms", "plain / reference")
    assert all(row[column] for row in result["times"] for column in columns)
    assert [row[""] for row in result["memory"]] == [
        "memory of whole image", "memory of training step",
    ]  # fmt: skip


def test_count_ends_with_both_counts(capsys, small, tiny_work):
    found = benchmark.main(["--count", *small, *tiny_work.opts])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert re.fullmatch(r"image \d+ ops \d+ waits, step \d+ ops \d+ waits", last)
    assert sum(found["forward"]["operators"].values()) > 100


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--what", "speed"], "known are inference, training, memory, evaluation"),
        (["--repeats", "0"], "at least 1"),
        (["--gpu", "--count"], "not allowed with"),
    ],
)
def test_bad_arguments_are_refused(wrong, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(wrong)
    assert message in capsys.readouterr().err


def test_semantic_models_are_refused(semantic_cfg, tiny_work):
    config = ["--config-file", "configs/shapes/semantic.yaml"]
    with pytest.raises(ValueError, match=r"semantic\.yaml: a semantic model"):
        benchmark.main([*config, *tiny_work.opts])


def test_turns_change_and_the_first_round_does_not_count(monkeypatch):
    calls = []
    monkeypatch.setattr(comparison, "seconds", lambda run: run() or len(calls))
    runs = [partial(calls.append, name) for name in "ab"]
    assert comparison.alternate(runs, 2) == [[4, 5], [3, 6]]
    assert "".join(calls) == "abbaab"


def _allocate(size):
    torch.ones(size, dtype=torch.uint8)
    torch.ones(size // 2, dtype=torch.uint8)


def _peak(size):
    return peak_memory(partial(_allocate, size), "cpu")


@pytest.mark.slow
def test_peak_memory_is_what_a_call_takes_at_most():
    size = 100_000_000
    # a fresh process, as for the benchmark's own figures: what other tests have set in this one
    # decides whether malloc gives freed blocks back
    assert call(_peak, size) == pytest.approx(size, rel=0.1)


def test_a_table_has_the_columns_of_all_rows():
    rows = [{"": "a", "ms": 1.2345}, {"": "b", "ms": 1234.5, "note": "x", "n": None}]
    assert table(rows).splitlines() == [
        "|  | ms | note | n |", "| --- | --- | --- | --- |", "| a | 1.23 |  |  |",
        "| b | 1234 | x |  |",
    ]  # fmt: skip
