"""`classes.json` comes back as it was written, and its errors name file and key."""

from __future__ import annotations

import json

import pytest
from detectron2.data import Metadata

from knet.classes import ClassIds
from knet.model_folder import read_classes, write_classes

IDS = ClassIds((0, 1), (0,))
GOOD = {
    "thing_classes": ["été", "square"],
    "stuff_classes": ["sky"],
    "thing_colors": [[1, 2, 3], [4, 5, 6]],
    "thing_dataset_id_to_contiguous_id": {7: 0, 12: 1},
}


def test_comes_back_as_it_was(tmp_path):
    path = tmp_path / "classes.json"
    write_classes(path, Metadata(name="a", **GOOD, other=5))
    read = read_classes(path, name="b", ids=IDS).as_dict()
    assert read == {"name": "b", **GOOD}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("thing_classes", "cat", "thing_classes is 'cat', not a list of names"),
        ("stuff_classes", [1], "stuff_classes is '[1]'"),
        ("thing_colors", [[1, 2, 3], [1, 2]], "thing_colors is"),
        ("thing_dataset_id_to_contiguous_id", {"a": 1}, "not a table of whole numbers"),
        ("thing_dataset_id_to_contiguous_id", {"1": None}, "not a table of whole numbers"),
        ("evaluator_type", "coco", "'evaluator_type' is unknown"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, key, value, named):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({**GOOD, key: value}))
    with pytest.raises(ValueError, match=r"classes\.json: .*: restore the file") as raised:
        read_classes(path, name="a", ids=IDS)
    assert named in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"[1]", b"[" * 100_000, b'{"a": ', b'"\xff"'])
def test_no_table_is_named(tmp_path, content):
    path = tmp_path / "classes.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"classes\.json.* (no .*restore the file|not UTF-8)"):
        read_classes(path, name="a", ids=IDS)
