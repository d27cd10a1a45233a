"""Lines on disk, and the file they become."""

from __future__ import annotations

import json

import pytest

from knet.evaluation.spool import KeptOnDisk, Spool


def test_spool_joins_lines_of_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("knet.evaluation.spool._BLOCK_BYTES", 20)
    spool = Spool(tmp_path)
    for k in range(30):
        spool.add(json.dumps({"number": k, "text": "ä\n"}))
    assert not list(tmp_path.iterdir())
    spool.write(str(tmp_path / "all.json"))
    found = json.loads((tmp_path / "all.json").read_text())
    assert found == [{"number": k, "text": "ä\n"} for k in range(30)]
    Spool(tmp_path).write(str(tmp_path / "none.json"), before='{"a": [', after="]}")
    assert json.loads((tmp_path / "none.json").read_text()) == {"a": []}


def test_result_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("old")
    spool = Spool(tmp_path)
    spool.add("1")

    def stop():
        yield "1"
        raise KeyboardInterrupt

    monkeypatch.setattr(spool, "_gathered", stop)
    with pytest.raises(KeyboardInterrupt):
        spool.write(str(path))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    spool.write(str(path))
    assert json.loads(path.read_text()) == [1]


def test_values_come_back(tmp_path):
    spool = Spool(tmp_path / "new")
    values = [{"a": (1, 0.1)}, "two\nlines", None]
    for value in values:
        spool.add_value(value)
    assert list(spool.values()) == values
    kept = KeptOnDisk(((k, list(range(k))) for k in (3, 1, 2)), tmp_path)
    assert list(kept) == [3, 1, 2] and len(kept) == 3
    assert kept[2] == [0, 1] and kept[3] == [0, 1, 2] and kept.get(4) is None
    assert 1 in kept and 4 not in kept
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]  # neither has a name
