"""Division into training and validation."""

from __future__ import annotations

import pytest

from knet.data.defects import DataError
from knet.data.formats.split import Item, split_items

ITEMS = [Item(f"images/{number:03d}.jpg") for number in range(200)]


def test_a_share_that_neither_order_nor_new_pictures_change():
    train, val, text = split_items(ITEMS, 0.2, 0)
    assert len(train) + len(val) == 200 and not set(train) & set(val)
    assert 25 <= len(val) <= 55
    assert text.startswith(f"no part for validation: {len(val)} of 200 pictures were split off")
    assert set(split_items(ITEMS[::-1], 0.2, 0)[1]) == set(val)
    more = ITEMS + [Item(f"images/new_{number}.jpg") for number in range(50)]
    assert set(split_items(more, 0.2, 0)[1]) & set(ITEMS) == set(val)
    assert set(split_items(ITEMS, 0.2, 1)[1]) != set(val)


def test_one_at_least_on_each_side():
    for count in (2, 3):
        for share in (0.001, 0.999):
            train, val, _ = split_items(ITEMS[:count], share, 0)
            assert train and val and len(train) + len(val) == count
    with pytest.raises(DataError, match="1 picture with labels cannot be divided"):
        split_items(ITEMS[:1], 0.2, 0)


def test_versions_of_one_picture_stay_together():
    items = [Item(f"{k}_jpg.rf.{version}0abc.jpg") for k in range(40) for version in range(3)]
    train, val, _ = split_items(items, 0.3, 0)
    sources = [{item.image.partition(".rf.")[0] for item in part} for part in (train, val)]
    assert val and not sources[0] & sources[1]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("train", "val", "test"), ("train", "val")),
        (("train", "test"), ("train", "test")),
        (("", "val"), ("", "val")),
    ],
)
def test_parts_of_the_folder(parts, expected):
    items = [Item(f"{part}/{k}.jpg", part=part) for part in parts for k in range(3)]
    train, val, text = split_items(items, 0.2, 0)
    assert ({item.part for item in train}, {item.part for item in val}) == (
        {expected[0]},
        {expected[1]},
    )
    assert len(train) == len(val) == 3
    assert ("3 others are not used" in text) == (len(parts) == 3)
    assert ("its test part" in text) == (expected[1] == "test")
