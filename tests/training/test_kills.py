"""No kill loses work or leaves a broken file; see `kill_driver.py` for more of them by hand."""

from pathlib import Path

import pytest

from ..processes import Program

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("kill_driver.py")


def test_every_kill_is_made_good_by_resuming(tmp_path):
    driver = Program(tmp_path, DRIVER, "--kills", 30, TMPDIR=tmp_path)
    try:
        status = driver.wait(480)
    finally:
        driver.kill()  # its trainings too, if it has not ended
    assert status == 0, driver.out + driver.err
    assert ": 0 failed" in driver.out
