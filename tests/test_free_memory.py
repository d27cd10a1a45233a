"""What is free is the least of the machine's and of every control group's rest."""

import math
from pathlib import Path

import pytest

from knet.free_memory import address_hint, free_memory, peak_memory

GB = 1 << 30


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))


MACHINE = {"proc/meminfo": f"MemTotal:  {64 << 20} kB\nMemAvailable:  {8 << 20} kB\n"}
V2 = {
    "proc/self/cgroup": "0::/outer/inner\n",
    "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    "sys/fs/cgroup/outer/inner/memory.current": GB,
    "sys/fs/cgroup/outer/memory.max": 4 * GB,
    "sys/fs/cgroup/outer/memory.current": 3 * GB,
    "sys/fs/cgroup/outer/memory.stat": f"anon {GB}\ninactive_file {GB}\n",
}
V1 = {
    "proc/self/cgroup": "3:cpu:/x\n5:memory,x:/docker/1234\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": 3 * GB,
    "sys/fs/cgroup/memory/memory.usage_in_bytes": 2 * GB,
}
UNLIMITED = {
    "proc/self/cgroup": "5:memory:/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096,
    "sys/fs/cgroup/memory/memory.usage_in_bytes": GB,
}


@pytest.mark.parametrize(
    ("files", "expected"), [({}, 8), (V2, 2), (V1, 1), (UNLIMITED, 8)], ids=["no", "v2", "v1", "un"]
)
def test_the_least_counts(tmp_path, files, expected):
    write(tmp_path, {**MACHINE, **files})
    assert free_memory(tmp_path) == expected * GB


def test_a_group_beyond_its_limit_has_nothing_left(tmp_path):
    write(tmp_path, {**MACHINE, **V2, "sys/fs/cgroup/outer/memory.current": 6 * GB})
    assert free_memory(tmp_path) == 0


def test_the_address_space_may_be_limited(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    pages = 2 * GB // resource.getpagesize()
    write(tmp_path, {**MACHINE, "proc/self/statm": f"{pages} 17 5\n"})
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3 * GB, 8 * GB))
    assert free_memory(tmp_path) == GB
    assert "3.0 GB (ulimit -v), of which 2.0 GB are taken" in address_hint(tmp_path)
    write(tmp_path, {"proc/meminfo": f"MemAvailable:  {1 << 19} kB\n"})
    assert address_hint(tmp_path) == ""  # the machine has less
    write(tmp_path, MACHINE)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert free_memory(tmp_path) == 8 * GB
    assert address_hint(tmp_path) == ""


def test_this_machine_has_some():
    assert 0 < free_memory() < math.inf


def test_the_most_that_was_held():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("only Linux says in /proc/self/status what a process has held at most")
    words = status.read_text().split()
    assert peak_memory() == pytest.approx(1024 * int(words[words.index("VmHWM:") + 1]), rel=0.1)
