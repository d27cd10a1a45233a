"""No kill loses work or leaves a broken file; see `kill_driver.py` for more of them by hand."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("kill_driver.py")


def test_every_kill_is_made_good_by_resuming(tmp_path):
    # a process of its own: the driver forks, which other tests' threads would not survive
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", DRIVER, "--kills", "12"], text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = driver.communicate(timeout=480)
    finally:
        with contextlib.suppress(ProcessLookupError):  # its trainings too, if it has not ended
            os.killpg(driver.pid, signal.SIGKILL)
    assert driver.returncode == 0, said
    assert ": 0 failed" in said
