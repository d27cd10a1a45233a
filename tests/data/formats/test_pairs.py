"""Arrangements of pictures and label maps."""

from __future__ import annotations

import pytest

from knet.data.defects import DataError
from knet.data.formats.pairs import find_pairs
from knet.data.formats.tree import Tree

from .makers import STEMS, labels, picture, png

# of picture and map; {} is the name
ARRANGEMENTS = [
    ("images/{}.jpg", "labels/{}.png"),
    ("CamVid/train/{}.png", "CamVid/trainannot/{}.png"),
    ("images/training/{}.jpg", "annotations/training/{}.png"),
    ("images/train/garden/{}.jpg", "labels/train/garden/{}.png"),
    ("train/images/{}.jpg", "train/masks/{}.png"),
    ("images/{}.png", "labels/{}_P.png"),
    ("a/{}.jpg", "a/{}.png"),
    ("{}.jpg", "{}.png"),
    ("all/{}_sat.jpg", "all/{}_mask.png"),
    ("images_train/img_{}.jpg", "masks_train/mask_{}.png"),
    ("images/train/{}.jpg", "masks/{}.png"),
    ("first/{}.png", "second/{}.png"),
    ("my labels/images/{}.jpg", "my labels/masks/{}.png"),
]


@pytest.mark.parametrize(("images", "maps"), ARRANGEMENTS)
def test_maps_are_told_from_pictures(images, maps, tmp_path):
    for stem in STEMS:
        picture(tmp_path / images.format(stem), stem)
        png(tmp_path / maps.format(stem), labels(stem))
    found = find_pairs(Tree(tmp_path))
    assert found is not None and not found.bare and not found.lone
    pairs = [(item.image, item.label) for item in found.items]
    assert pairs == [(images.format(stem), maps.format(stem)) for stem in STEMS]
    # a folder that holds all is no part
    is_part = "train" in images and not images.startswith("train/")
    assert {item.part for item in found.items} == {"train" if is_part else ""}


def test_those_without_counterpart_are_named(tmp_path):
    for stem in STEMS:
        if stem != STEMS[0]:
            picture(tmp_path / "images" / f"{stem}.jpg", stem)
        if stem != STEMS[1]:
            png(tmp_path / "masks" / f"{stem}.png", labels(stem))
    found = find_pairs(Tree(tmp_path))
    assert found is not None and len(found.items) == 4
    assert (found.bare, found.lone) == ([f"images/{STEMS[1]}.jpg"], [f"masks/{STEMS[0]}.png"])


def test_pictures_alone_are_no_pairs(tmp_path):
    for stem in STEMS:
        picture(tmp_path / f"{stem}.png", stem)
    assert find_pairs(Tree(tmp_path)) is None


def test_two_maps_of_one_picture(tmp_path):
    picture(tmp_path / "images" / "a_00.jpg", STEMS[0])
    for name in ("a_00_mask", "a_00_label"):
        png(tmp_path / "masks" / f"{name}.png", labels(STEMS[0]))
    with pytest.raises(DataError, match=r"are both label maps of images/a_00.jpg; keep one"):
        find_pairs(Tree(tmp_path))
