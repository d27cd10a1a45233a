"""demo/run_demo.py: how it ends. What it runs is tested where it belongs."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "demo" / "run_demo.py"
_SPEC = importlib.util.spec_from_file_location("run_demo_script", SCRIPT)
demo = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(demo)


@pytest.mark.parametrize(
    "code, status", [("exit(2)", 2), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_status_is_that_of_the_command(code, status, capfd):
    demo.run("-c", "print('all right')")
    with pytest.raises(SystemExit) as end:
        demo.run("-c", code)
    assert end.value.code == status
    said = capfd.readouterr()
    assert "all right" in said.out and len(said.err.splitlines()) == 1


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_waits_for_the_command_to_finish_its_work(tmp_path, number, status):
    done = tmp_path / "done"
    code = (
        "import os, pathlib, signal, time\n"
        "for n in (2, 15): signal.signal(n, lambda n, _: ("
        f"time.sleep(0.5), pathlib.Path({str(done)!r}).touch(), os._exit(128 + n)))\n"
        f"os.kill(os.getppid(), {int(number)}); time.sleep(60)"
    )
    starter = f"import runpy; runpy.run_path({str(SCRIPT)!r})['run']('-c', {code!r})"
    ended = subprocess.run([sys.executable, "-c", starter], capture_output=True, timeout=60)
    assert (ended.returncode, done.exists()) == (status, True)


def test_scores_are_those_of_the_last_line(tmp_path, capsys):
    path = tmp_path / "metrics.json"
    for value in (1.0, 2.0):
        with open(path, "a") as file:
            file.write(json.dumps({key: value for key in demo.SCORES}) + os.linesep)
    assert set(demo.last_line(path).values()) == {2.0}
    with pytest.raises(SystemExit) as end:
        demo.last_line(tmp_path / "none.json")
    assert end.value.code == 2 and "none.json has no scores" in capsys.readouterr().err


def test_an_earlier_demo_stays(tmp_path):
    assert demo.unused(tmp_path / "demo") == tmp_path / "demo"
    for name in ("demo", "demo_2"):
        (tmp_path / name).mkdir()
    assert demo.unused(tmp_path / "demo") == tmp_path / "demo_3"
