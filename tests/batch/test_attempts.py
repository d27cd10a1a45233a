"""What is known of a picture that ended the process."""

import pytest

from knet.batch.attempts import ENDS, Attempt, count_start, remove_notes, where_it_ended


def die(shard, picture, call=None):
    """What a killed process leaves; the pictures that it would have left out."""
    attempt = Attempt(shard, call).__enter__()
    attempt.begin(picture)
    return attempt.given_up


def test_a_picture_is_given_up_after_two_ends(tmp_path):
    shard = tmp_path / "results-0000004.parquet"
    assert ENDS == 2 and not die(shard, 7)
    assert die(shard, 7) == set()
    assert die(shard, 9) == {7}
    with pytest.raises(KeyboardInterrupt), Attempt(shard) as attempt:  # is no end at a picture
        attempt.begin(9)
        assert attempt.given_up == {7}
        raise KeyboardInterrupt
    assert die(shard, 9) == {7}  # and what is known stays
    with Attempt(shard) as attempt:
        assert attempt.given_up == {7, 9}
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), Attempt(shard) as attempt:
        attempt.begin(100)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_ends_of_another_call_do_not_count(tmp_path):
    shard, other = (tmp_path / f"results-000000{k}.parquet" for k in (3, 5))
    assert not die(shard, 2, "one") and not die(shard, 2, "one")
    die(other, 0, "one")
    assert where_it_ended(tmp_path, "one") == [(3, 2), (5, 0)]
    assert where_it_ended(tmp_path, "two") == []
    assert die(shard, 2, "two") == set() and die(shard, 2) == set()
    assert where_it_ended(tmp_path, "one") == [(5, 0)]
    assert [count_start(tmp_path, call) for call in ("one", "one", "two")] == [1, 2, 1]
    remove_notes(tmp_path)
    assert list(tmp_path.iterdir()) == []
