import logging
import sys
from pathlib import Path

import pytest
import torch

from knet.errors import UserError, is_shown, run_command


def _raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error, line",
    [
        (UserError("no such\nthing"), "tool: error: no such thing\n"),
        (KeyError("a key"), "tool: error: a key (KeyError; KNET_TRACEBACK=1 shows where)\n"),
    ],
)
def test_an_error_for_the_user_is_one_line_and_status_2(capsys, monkeypatch, error, line):
    monkeypatch.delenv("KNET_TRACEBACK", raising=False)
    assert run_command("tool", _raising(error)) == 2
    assert capsys.readouterr().err == line
    monkeypatch.setenv("KNET_TRACEBACK", "1")
    assert run_command("tool", _raising(error)) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_message_of_the_package_stands_alone(capsys, tmp_path):
    from knet.checkpoint.read_file import read_file

    (tmp_path / "empty.pth").touch()
    assert run_command("tool", lambda: read_file(str(tmp_path / "empty.pth"))) == 2
    assert capsys.readouterr().err.endswith("copy or download it again\n")


def test_status_and_defects_go_through():
    assert run_command("tool", lambda: 1) == 1 and run_command("tool", lambda: None) == 0
    with pytest.raises(TypeError):
        run_command("tool", _raising(TypeError("a defect")))


def _cpu():
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("main", "asked"),
    [
        (_cpu, "1152921504606846976 bytes"),
        (_raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 "
         "has a total capacity of 139.80 GiB")), "2.50 GiB"),
        (_raising(RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not "
         "enough memory: you tried to allocate 64 bytes.")), "64 bytes"),
        (_raising(MemoryError("Unable to allocate 8.00 EiB for an array")), "8.00 EiB"),
        (_raising(MemoryError()), ""),
    ],
    ids=["cpu", "cuda", "windows", "numpy", "python"],
)  # fmt: skip
def test_want_of_memory_is_one_line_with_the_mend(capsys, monkeypatch, main, asked):
    monkeypatch.delenv("KNET_TRACEBACK", raising=False)
    assert run_command("tool", main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    what = f"out of memory ({asked} more were asked for)" if asked else "out of memory"
    assert line.startswith(f"tool: error: {what}. In training raise SOLVER.ACCUMULATION_STEPS")
    try:
        main()
    except (MemoryError, RuntimeError):
        record = logging.LogRecord("d2", logging.ERROR, "", 0, "", (), sys.exc_info())
    assert not is_shown(record)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such limit")
def test_a_limit_of_the_address_space_is_named(capsys):
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29, before[1]))
    try:
        assert run_command("tool", lambda: torch.empty(2**30, dtype=torch.uint8)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "bytes more were asked for). The limit is that of the add" in capsys.readouterr().err
