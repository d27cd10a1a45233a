"""Several processes end together, and say why."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch.distributed as dist
from detectron2.utils import comm

from knet.training.group import in_group
from knet.training.launch import _free_port
from knet.training.places import Place

from ..processes import Program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """How each of the jobs of `signal_driver.py` ended."""
    driver, folder = Path(__file__).with_name("signal_driver.py"), tmp_path_factory.mktemp("jobs")
    program = Program(folder, driver, folder, KNET_TRACEBACK="")
    try:
        assert program.wait(240) == 0, program.err
    finally:
        program.kill()
    return json.loads(program.out)


@pytest.mark.parametrize(
    "job, status",
    [("term", 143), ("term_to_all", 143), ("int", 130), ("ctrl_c", 130), ("hang_up", 129),
     ("pre_empted", 138), ("kill", -9)],
)  # fmt: skip
def test_signal_to_the_launcher_stops_all_after_the_same_step(ended, job, status):
    result = ended[job]
    assert result["status"] == status
    first, second = result["stopped"]
    assert first == second
    assert "Error" not in result["errors"]


def test_death_of_a_process_ends_the_others_and_is_named(ended):
    assert ended["one_killed"]["status"] == 137
    assert "process 1 of 2 (numbered from 0) was ended by SIGKILL" in ended["one_killed"]["errors"]


@pytest.mark.parametrize(
    "job, status, reason",
    [
        ("lost", [75, -9], "is gone; process 0 of 2"),
        ("told", [2, 2], "failed: no such thing: take another; process 0 of 2"),
        ("stopped", [143, 143], "was stopped by SIGTERM; process 0 of 2"),
    ],
)
def test_machines_end_together_and_name_who_was_first(ended, job, status, reason):
    assert ended[job]["status"] == status
    errors = ended[job]["errors"].splitlines()[-1]
    assert errors.startswith("process 1 of 2 (numbered from 0; ")
    assert f"id {ended[job]['pid']}) {reason}" in errors
    assert ("--resume" in errors) == (job != "told")


def test_error_of_a_process_is_told_once(ended):
    assert ended["one_refuses"]["status"] == 2
    lines = ended["one_refuses"]["errors"].splitlines()
    assert [line for line in lines if "no such thing" in line or "Traceback" in line] == [
        "job: error: no such thing: take another"
    ]
    assert ended["one_fails"]["status"] == 1
    assert ended["one_fails"]["errors"].count("TypeError: a defect") == 1


def _session(leader):
    """Process ids in the session of a process."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:  # it has ended
            continue
        if int(session) == leader and state not in "ZX":
            pids.append(int(path.parent.name))
    return pids


def test_sigterm_to_a_training_of_two_processes(tiny_opts, tiny_shapes, tmp_path):
    """The whole of it: processes that share their imports, with loader workers of their own."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shapes").symlink_to(tiny_shapes)
    opts = [*tiny_opts, "SOLVER.MAX_ITER", "100000", "DATASETS.TEST", "()"]
    command = [sys.executable, "train_net.py", "--config-file", "configs/shapes/panoptic.yaml"]
    said, out = tmp_path / "said", tmp_path / "out"
    with open(said, "w") as file:
        job = subprocess.Popen(
            [*command, "--num-gpus", "2", *opts], stdout=file, stderr=file, start_new_session=True,
            env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "data")},
        )  # fmt: skip
    try:
        for _ in range(600):
            if "step 5 of" in said.read_text() or job.poll() is not None:
                break
            time.sleep(0.2)
        assert job.poll() is None and len(_session(job.pid)) >= 3, said.read_text()
        words = {Path(f"/proc/{pid}/cmdline").read_bytes() for pid in _session(job.pid)}
        assert len(words) == 1  # none has started an interpreter anew
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=60) == 143, said.read_text()
        for _ in range(50):  # loader workers and helpers of multiprocessing see it a moment later
            if not _session(job.pid):
                break
            time.sleep(0.2)
        assert not _session(job.pid)
    finally:
        for pid in _session(job.pid):
            os.kill(pid, signal.SIGKILL)
    name = (out / "last_checkpoint").read_text()
    assert f"--resume goes on from {out / name}" in said.read_text() and (out / name).is_file()
    assert "Traceback" not in said.read_text()


def test_nothing_keeps_the_group_when_the_work_is_done():
    """Its threads, which end with it, would meet an interpreter that is ending."""

    def main():
        assert comm._get_global_gloo_group() is dist.group.WORLD  # which Detectron2 keeps
        assert comm._LOCAL_PROCESS_GROUP is not None
        return weakref.ref(dist.group.WORLD)

    place = Place(0, 1, 0, 1, 0, f"tcp://127.0.0.1:{_free_port()}")
    group = in_group(place, False, main, (), watched=False)
    gc.collect()
    assert group() is None and not dist.is_initialized()
    assert comm._LOCAL_PROCESS_GROUP is None
