"""Damaged inputs end with the name of what is damaged; `driver.py` runs more of them by hand."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")

import doors
import pool
from driver import BAD, run_door

pytestmark = pytest.mark.slow

CASES = 2000


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return doors.Base(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize(("name", "count"), doors.shares(CASES).items())
def test_damaged_inputs_are_named(base, name, count):
    results = list(run_door(doors.DOORS[name](base), count, seed=0))
    assert len(results) == count
    bad = [f"{r.number}: {r.outcome}: {r.what}" for r in results if r.outcome in BAD]
    assert not bad, f"{len(bad)} of {count}, first: {bad[:5]}"
    # the cases do damage, and not all of it ends the work
    assert sum(result.outcome == "named" for result in results) > 0


def test_what_ends_a_process_is_told_of_its_case(monkeypatch):
    monkeypatch.setattr(pool, "SECONDS", 3)
    monkeypatch.setattr(pool, "_MORE_MEMORY", 50 << 20)
    kinds = {1: os.abort, 3: signal.pause, 4: lambda: np.ones(100 << 20, np.uint8), 6: sys.exit}

    def run(number):
        kinds.get(number, int)()
        return "accepted", str(number)

    results = list(pool.run_cases("door", range(8), run, processes=2))
    found = {result.number: result.outcome for result in results}
    assert sorted(result.number for result in results) == list(range(8))
    expected = {1: "crash", 3: "hang", 4: "memory", 6: "crash"}
    assert found == {number: expected.get(number, "accepted") for number in range(8)}
    assert all(r.what == str(r.number) for r in results if r.outcome == "accepted")
