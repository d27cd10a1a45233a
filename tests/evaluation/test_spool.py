"""Lines on disk, and the file they become."""

from __future__ import annotations

import json

import pytest

from knet.evaluation.spool import Spool


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
