"""Several processes end together, and say why."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """How each of the jobs of `signal_driver.py` ended."""
    driver, folder = Path(__file__).with_name("signal_driver.py"), tmp_path_factory.mktemp("jobs")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", driver, folder], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "KNET_TRACEBACK": ""}, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "job, status",
    [("term", 143), ("term_to_all", 143), ("int", 130), ("ctrl_c", 130), ("kill", -9)],
)
def test_signal_to_the_launcher_stops_all_after_the_same_step(ended, job, status):
    result = ended[job]
    assert result["status"] == status
    first, second = result["stopped"]
    assert first == second
    assert "Error" not in result["errors"]


def test_death_of_a_process_ends_the_others_and_is_named(ended):
    assert ended["one_killed"]["status"] == 137
    assert "process 1 of 2 (numbered from 0) was ended by SIGKILL" in ended["one_killed"]["errors"]


def test_error_of_a_process_is_told_once(ended):
    assert ended["one_refuses"]["status"] == 2
    lines = ended["one_refuses"]["errors"].splitlines()
    assert [line for line in lines if "no such thing" in line or "Traceback" in line] == [
        "job: error: no such thing: take another"
    ]
    assert ended["one_fails"]["status"] == 1
    assert ended["one_fails"]["errors"].count("TypeError: a defect") == 1
