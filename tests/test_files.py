import os

import pytest

from knet.files import UNFINISHED, whole_file, write_json, write_text


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
