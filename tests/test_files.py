import os
import subprocess

import pytest

from knet import files
from knet.files import (
    UNFINISHED,
    remove_unfinished,
    unfinished_name,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)


def test_a_file_that_was_written_has_the_rights_of_any_new_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"é": 1}, indent=1)
    assert path.read_text(encoding="utf-8") == '{\n "\\u00e9": 1\n}\n'
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert os.listdir(tmp_path) in (["a.json", "plain"], ["plain", "a.json"])


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk full"), whole_file(path) as unfinished:
        assert unfinished.suffix == ".txt" and UNFINISHED in unfinished.name
        unfinished.write_text("ne")
        raise OSError("disk full")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_narrow_umask_is_kept(tmp_path):
    old = os.umask(0o077)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_link_stays_and_a_pipe_is_written_as_it_is(tmp_path):
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "x"
    reading, writing = os.pipe()
    write_text(f"/dev/fd/{writing}", "to a program")
    assert os.read(reading, 100) == b"to a program"
    os.close(reading), os.close(writing)


def test_names_as_long_as_the_file_system_takes(tmp_path):
    write_text(tmp_path / ("n" * 251 + ".txt"), "x")
    write_text(tmp_path / ("名" * 83 + ".txt"), "x")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_is_there_whole_or_as_before(tmp_path):
    target = tmp_path / "labels"
    for text in ("old", "new"):
        with whole_folder(target) as fresh:
            (fresh / "a").mkdir()
            (fresh / "a" / f"{text}.txt").write_text(text)
        assert [path.name for path in target.rglob("*.txt")] == [f"{text}.txt"]
    with pytest.raises(OSError, match="disk full"), whole_folder(target) as fresh:
        (fresh / "half.txt").write_text("ha")
        raise OSError("disk full")
    assert os.listdir(tmp_path) == ["labels"] and (target / "a" / "new.txt").exists()


def test_what_a_living_process_writes_is_left_and_what_a_dead_one_wrote_is_not(
    tmp_path, monkeypatch
):
    dead = subprocess.Popen(["true"])
    dead.wait()

    def name(process, machine):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: process)
            patch.setattr(files.socket, "gethostname", lambda: machine)
            return unfinished_name("scores.json")

    here = files.socket.gethostname()
    living = name(os.getppid(), here)
    other, old = name(dead.pid, "another"), name(os.getppid(), "another")
    lost = [old, name(dead.pid, here), name(os.getpid(), here), f"x{UNFINISHED}12ab.pth"]
    for file in (living, other, *lost):
        (tmp_path / file).touch()
    folder = tmp_path / name(dead.pid, here)
    folder.mkdir()
    (folder / "1.png").touch()
    os.utime(tmp_path / old, (0, 0))
    remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([living, other])
