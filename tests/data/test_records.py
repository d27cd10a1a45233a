"""Records in a file: the same dicts, looked up at random, without code that a file could bring."""

import io
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import BoxMode

from knet.data.records import (
    ANNOTATED,
    LABELLED,
    WIDE,
    NotKeptError,
    Selection,
    StoredFile,
    StoredItems,
    StoredRecords,
    flags_of,
    join,
    select,
    write_file,
)


def make_records(count, start=0):
    return [
        {
            "file_name": f"{k}.jpg",
            "image_id": k,
            "width": 3 + k % 2,
            "height": 3,
            "annotations": [
                {
                    "category_id": k % 3,
                    "iscrowd": k % 2,
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "segmentation": {"size": [3, 3], "counts": b"\x00\xff12"},
                    "bbox": (0.1, 1, np.float32(2), 3),
                }
            ]
            * (k % 4),
        }
        for k in range(start, start + count)
    ]


def store(path, records, **items):
    with open(path, "wb") as stream:
        write_file(stream, records, items, {"text": "x"})
    return StoredFile(path)


@pytest.fixture
def stored(tmp_path):
    return StoredRecords(store(tmp_path / "a.records", make_records(20)))


def test_records_are_the_same_dicts_each_time_anew(stored):
    records = make_records(20)
    assert list(stored) == records and len(stored) == 20
    assert stored[-1] == records[-1] and list(stored[3:12:4]) == records[3:12:4]
    assert type(stored[3]["annotations"][0]["bbox_mode"]) is BoxMode
    assert type(stored[3]["annotations"][0]["bbox"]) is tuple
    stored[3].clear()
    assert stored[3] == records[3]
    with pytest.raises(IndexError):
        stored[20]
    assert flags_of(stored).tolist() == flags_of(records).tolist()
    expected = [
        WIDE * (k % 2) + ANNOTATED + LABELLED * (k % 4 > 0 and k % 2 == 0) for k in range(20)
    ]
    assert flags_of(records).tolist() == expected


def test_other_processes_open_the_file_themselves(stored):
    sent = pickle.dumps(Selection([stored], np.array([4, 2])))
    assert len(sent) < 1000
    assert list(pickle.loads(sent)) == [make_records(20)[k] for k in (4, 2)]


def test_data_sets_are_joined_and_chosen_from(stored):
    others = make_records(5, start=100)
    both = join([stored, others, stored])
    records = [*make_records(20), *others, *make_records(20)]
    assert list(both) == records
    chosen = flags_of(both) & LABELLED > 0
    assert list(select(both, chosen)) == select(records, chosen)
    assert list(select(both, chosen)[2:5]) == select(records, chosen)[2:5]
    assert isinstance(join([others, others]), list)


def test_detectron2_takes_them_as_it_takes_lists(stored):
    records = make_records(20)
    given = DatasetFromList(stored)
    assert [given[k] for k in range(len(given))] == records
    repeat = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    assert repeat(stored, 0.5).tolist() == repeat(records, 0.5).tolist()


def test_items_beside_the_records(tmp_path):
    file = store(tmp_path / "a", make_records(2), more=["a", ("b", 3), None])
    assert list(StoredItems(file, "more")) == ["a", ("b", 3), None]
    assert file.contents["text"] == "x"
    assert list(StoredRecords(store(tmp_path / "b", []))) == []


class Foreign:
    pass


def test_nothing_that_runs_code_is_written_or_read(tmp_path):
    for value in (Foreign(), Foreign, print):
        with pytest.raises(NotKeptError, match="is not kept on disk"):
            write_file(io.BytesIO(), [{"x": value}], {}, {})
    path = tmp_path / "a.records"
    store(path, [{"x": "y" * 40}])
    evil = pickle.dumps(print)
    data = path.read_bytes()
    path.write_bytes(evil + data[len(evil) :])
    with pytest.raises(ValueError, match=r"a\.records: damaged \(.*print is in no file of records"):
        StoredRecords(StoredFile(path))[0]


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_damaged_file_is_named(tmp_path, keep):
    path = tmp_path / "a.records"
    store(path, make_records(3))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.records: damaged .*remove it: it is made anew"):
        StoredFile(path)
