"""Progress of a long look: said after a while, with the time left."""

import pytest

from knet.data import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_long_sequence_says_where_it_is(clock, capsys):
    seen = []
    for item in progress.progressing(range(2048), "reading", "shards"):
        seen.append(item)
        clock[0] += 0.01
    assert seen == list(range(2048))
    # to a file every ten seconds: 1024 of them take 10.24 s
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "reading: 1024 of 2048 shards, 10 s left",
        "reading: 2048 of 2048 shards, 0 s left",
    ]


def test_a_short_one_says_nothing(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    assert list(progress.progressing("abc" * 400, "reading", "letters")) == list("abc" * 400)
    assert capsys.readouterr().err == ""
