"""The benchmark runs, and its stopwatch, tables and memory figures are right."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import benchmark
import benchmark_report as report
import pytest
import torch
import torch.nn.functional as F
from benchmark_laps import Counting, Laps, alternate, peak_memory, products, quartiles

from knet.accel.strided import convolve_3x3_strided
from knet.accel.winograd import convolve_3x3

TINY = [
    "DATASETS.TRAIN", "()", "DATASETS.TEST", "()",
    "MODEL.KNET.NUM_THING_CLASSES", "4", "MODEL.KNET.NUM_STUFF_CLASSES", "3",
    "MODEL.SMALL_RESNET.CHANNELS", "[16, 32, 48, 64]", "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.KNET.HIDDEN_DIM", "16", "MODEL.KNET.FFN_DIM", "32", "MODEL.KNET.NORM_GROUPS", "4",
    "MODEL.KNET.NUM_HEADS", "4",
]  # fmt: skip
SMALL = ["--config-file", "configs/shapes/panoptic.yaml", "--size", "64", "96"]


def test_quick_run_ends_with_the_three_ratios(tmp_path, capsys):
    path = tmp_path / "result.json"
    small = [*SMALL, "--output-size", "60", "90", "--objects", "4", "--repeats", "2"]
    benchmark.main(["--quick", *small, "--json", str(path), *TINY])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    number = r"\d+\.\d\d"
    assert re.fullmatch(rf"inference {number} training {number} memory {number}", last)
    result = json.loads(path.read_text())
    assert result["same_pixels"] > 0.999
    assert result["losses_differ"] < 1e-4
    stages = {row["stage"]: row for row in result["inference"]}
    assert {"backbone", "neck", "heads", "post-processing", "whole"} <= set(stages)
    assert stages["backbone"]["gflop"]["ours"] == stages["backbone"]["gflop"]["reference"] > 0
    low, middle, high = stages["whole"]["ours"]
    assert 0 < low <= middle <= high
    training = {row["stage"] for row in result["training"]}
    assert {"forward", "matching", "losses", "backward", "optimiser", "step"} <= training
    assert {row["part"] for row in result["memory"]} == {
        "post-processing", "image", "training step",
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--what", "speed"], "known are inference, training, memory"),
        (["--repeats", "0"], "at least 1"),
    ],
)
def test_bad_arguments_are_refused(wrong, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(wrong)
    assert message in capsys.readouterr().err


def test_semantic_models_are_refused(semantic_cfg):
    with pytest.raises(ValueError, match=r"semantic\.yaml: a semantic model"):
        benchmark.main(["--config-file", "configs/shapes/semantic.yaml", *TINY])


def test_a_timed_function_is_no_part_of_the_stage_around_it():
    clock = 0.0

    class Worker:
        def work(self, amount):
            nonlocal clock
            clock += amount
            return amount

    worker, laps = Worker(), Counting(lambda: clock)
    with laps.timing(worker, "work", "inner"):
        assert worker.work(2.0) == 2.0
        clock += 1.0
        worker.work(3.0)
    laps.end("outer")
    worker.work(7.0)
    laps.restart()
    clock += 0.5
    laps.end("outer")
    assert laps.stages == {"inner": 5.0, "outer": 1.5}
    assert "work" not in vars(worker)


def test_products_count_two_operations_each():
    def run(laps: Laps) -> None:
        torch.randn(3, 4) @ torch.randn(4, 5)
        laps.end("product")
        torch.nn.functional.conv2d(torch.randn(1, 2, 8, 8), torch.randn(3, 2, 1, 1))
        laps.end("convolution")

    assert products(run) == {"product": 2 * 3 * 4 * 5, "convolution": 2 * 64 * 2 * 3}


@pytest.mark.parametrize("stride, fast", [(1, convolve_3x3), (2, convolve_3x3_strided)])
def test_products_count_convolutions_as_direct_sums(stride, fast):
    x, weight = torch.randn(2, 8, 20, 28), torch.randn(4, 8, 3, 3, requires_grad=True)

    def run(laps: Laps, convolve: Callable[..., torch.Tensor]) -> None:
        y = convolve(x.requires_grad_(), weight, None)
        laps.end("forward")
        y.sum().backward()
        laps.end("backward")

    expected = products(partial(run, convolve=partial(F.conv2d, stride=stride, padding=1)))
    assert expected["backward"] == 2 * expected["forward"] > 0
    assert products(partial(run, convolve=fast)) == expected


def test_turns_change_and_the_first_round_does_not_count():
    calls = []
    runs = [lambda name=name: calls.append(name) or {"calls": len(calls)} for name in "ab"]
    rounds = alternate(runs, 2, lambda: calls.append("."))
    assert "".join(calls) == ".ab.ba.ab"
    assert [[r["calls"] for r in side] for side in rounds] == [[6, 8], [5, 9]]


def _allocate(size: int) -> None:
    torch.ones(size, dtype=torch.uint8)
    torch.ones(size // 2, dtype=torch.uint8)


def _peak(size: int) -> float:
    return peak_memory(partial(_allocate, size), "cpu")


def test_peak_memory_is_what_a_call_takes_at_most():
    size = 100_000_000
    # a fresh interpreter, as for the benchmark's own figures: what other tests have set in this
    # process decides whether malloc gives freed blocks back
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_peak, size).result() == pytest.approx(size, rel=0.1)


def test_rows_and_tables():
    ours = [{"heads": 0.1, "post-processing": 0.3}, {"heads": 0.1, "post-processing": 0.1}]
    theirs = [{"heads": 0.4, "post-processing": 0.4}, {"heads": 0.2, "post-processing": 0.2}]
    counts = {"ours": {"heads": 5e9}, "reference": {"heads": 6e9}}
    rows = report.time_rows(
        ours, theirs, products={side: {**c, "post-processing": 0.0} for side, c in counts.items()},
        rate=1e11,
    )  # fmt: skip
    both = rows[-1]
    assert both["stage"] == "heads + post-processing"
    assert both["ratio"] == pytest.approx(0.5) and both["ours"][1] == pytest.approx(0.3)
    assert both["limit"] == pytest.approx(0.05) and both["over_limit"] == pytest.approx(6)
    assert "| heads | 100 (100 to 100) | 300 (250 to 350) | 0.38 | 5.0 (6.0) | 50 | 2.00 |" in (
        report.format_times("inference", rows)
    )
    found = {"ours": {"step": 3e6, "large": 9e6}, "reference": {"step": 12e6}}
    table = report.format_memory(report.memory_rows(found))
    assert "| step | 3 | 12 | 0.25 |" in table and "| large | 9 | not run |  |" in table
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
