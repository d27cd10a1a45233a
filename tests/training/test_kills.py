"""No kill loses work or leaves a broken file; see `kill_driver.py` for more of them by hand."""

import os
import subprocess
import sys
from pathlib import Path

DRIVER = Path(__file__).with_name("kill_driver.py")


def test_every_kill_is_made_good_by_resuming():
    # a process of its own: the driver forks, which other tests' threads would not survive
    done = subprocess.run(
        [sys.executable, "-W", "ignore", DRIVER, "--kills", "30"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=480,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": 0 failed" in done.stdout
