"""Data sets whose classes do not fit: messages name files, and classes by their ids there."""

import json
import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from knet.classes import class_ids_from_config
from knet.config import get_cfg_from_file
from knet.data import register_coco_instances

from .data.good_sets import make_good


@pytest.fixture
def cfg(tmp_path):
    """Of two instance data sets: the ids 3 (stem) and 7 (leaf) are the labels 0 and 1."""
    cfg = get_cfg_from_file("configs/shapes/instance.yaml")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("ours",), ("theirs",)
    before = set(DatasetCatalog.list())
    for name in ("ours", "theirs"):
        make_good("coco_instances", tmp_path / name)
    yield cfg
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def message(cfg, tmp_path, categories):
    path = tmp_path / "theirs" / "annotations.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "categories": categories}))
    for name in ("ours", "theirs"):
        root = tmp_path / name
        register_coco_instances(
            name, image_root=root / "images", json_file=root / "annotations.json"
        )
    with pytest.raises(ValueError) as caught:
        class_ids_from_config(cfg)
    return str(caught.value)


def test_another_number_of_classes(cfg, tmp_path):
    text = message(cfg, tmp_path, [{"id": 3, "name": "stem"}])
    ours, theirs = (Path(tmp_path, name, "annotations.json") for name in ("ours", "theirs"))
    assert f"'ours' ({ours}) has 2 thing classes (id 3 'stem', id 7 'leaf') and 0" in text
    assert f"'theirs' ({theirs}) has 1 thing classes (id 3 'stem') and 0 stuff" in text


def test_other_names(cfg, tmp_path):
    text = message(cfg, tmp_path, [{"id": 1, "name": "leaf"}, {"id": 9, "name": "stem"}])
    assert re.search(r"id 3 'stem' of 'ours' \(.*json\) stands where id 1 'leaf' of 'theirs'", text)


def test_another_number_in_the_config(cfg, tmp_path):
    cfg.MODEL.KNET.NUM_THING_CLASSES = 5
    categories = [{"id": 3, "name": "stem"}, {"id": 7, "name": "leaf"}]
    text = message(cfg, tmp_path, categories)
    assert text.startswith("MODEL.KNET.NUM_THING_CLASSES is 5, but 'ours' (")
    assert "has 2 thing classes (id 3 'stem', id 7 'leaf')" in text and "key to 2, or" in text
