"""Data sets that a config describes."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from knet.config import get_cfg_from_file
from knet.data import register_custom
from knet.data.custom import register_data_sets


@pytest.fixture
def data_root(tmp_path, monkeypatch, shapes_root) -> Path:
    """A folder of data sets with one of each format."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "shapes").symlink_to(shapes_root)
    for folder in ("images", "labels"):
        (tmp_path / "leaves" / folder).mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "leaves" / "images" / "a.jpg")
    Image.fromarray(np.full((6, 8), 9, np.uint8)).save(tmp_path / "leaves" / "labels" / "a.png")
    (tmp_path / "leaves" / "names.txt").write_text("background\nleaf\n")
    return tmp_path


PANOPTIC = {
    "NAME": "own_panoptic",
    "FORMAT": "coco_panoptic",
    "IMAGE_ROOT": "shapes/val/images",
    "PANOPTIC_ROOT": "shapes/val/panoptic",
    "PANOPTIC_JSON": "shapes/val/panoptic.json",
    "INSTANCES_JSON": "shapes/val/instances.json",
    "SEM_SEG_ROOT": "shapes/val/semantic",
}
INSTANCES = {
    "NAME": "own_instances",
    "FORMAT": "coco_instances",
    "IMAGE_ROOT": "shapes/val/images",
    "JSON_FILE": "shapes/val/instances.json",
}
SEMANTIC = {
    "NAME": "own_semantic",
    "FORMAT": "semantic",
    "IMAGE_ROOT": "leaves/images",
    "SEM_SEG_ROOT": "leaves/labels",
    "CLASSES": ["background", "leaf"],
    "IGNORE_LABEL": 9,
    "MAX_IMAGES": 1,
}


def config_file(folder: Path, *entries) -> str:
    path = folder / "own.yaml"
    base = Path("configs/shapes/panoptic.yaml").resolve()
    path.write_text(yaml.safe_dump({"_BASE_": str(base), "DATASETS": {"CUSTOM": list(entries)}}))
    return str(path)


def make_cfg(folder, *entries):
    return get_cfg_from_file(config_file(folder, *entries), [])


def test_no_custom_data_by_default():
    cfg = get_cfg_from_file("configs/shapes/panoptic.yaml", [])
    assert cfg.DATASETS.CUSTOM == []
    register_custom(cfg)


def test_a_data_set_of_ones_own_may_be_called_as_a_built_in_one(data_root):
    cfg = make_cfg(data_root, {**SEMANTIC, "NAME": "photos_train"})
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("photos_train",), ("photos_val",)
    register_data_sets(cfg)
    assert MetadataCatalog.get("photos_train").stuff_classes == ["background", "leaf"]
    assert len(DatasetCatalog.get("photos_val")) == 3


def test_built_in_data_that_are_not_named_are_not_drawn(data_root):
    cfg = make_cfg(data_root, SEMANTIC)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ("photos_val",)
    register_data_sets(cfg, cfg.DATASETS.TEST)
    assert {"photos_val", "own_semantic"} <= set(DatasetCatalog.list())
    assert "shapes_train" not in DatasetCatalog.list()


def test_each_format(data_root):
    cfg = make_cfg(data_root, PANOPTIC, INSTANCES, SEMANTIC)
    cfg.freeze()
    register_custom(cfg)
    register_custom(cfg)
    assert len(DatasetCatalog.get("own_panoptic")) == len(DatasetCatalog.get("own_instances")) == 8
    assert MetadataCatalog.get("own_panoptic").sem_seg_root.endswith("semantic")
    (record,) = DatasetCatalog.get("own_semantic")
    assert record["file_name"] == str(data_root / "leaves" / "images" / "a.jpg")
    meta = MetadataCatalog.get("own_semantic")
    assert (meta.stuff_classes, meta.ignore_label) == (["background", "leaf"], 9)


def test_paths_may_be_absolute_and_classes_a_file(data_root, monkeypatch):
    entry = {**SEMANTIC, "IMAGE_ROOT": str(data_root / "leaves" / "images")}
    entry["CLASSES"] = "leaves/names.txt"
    entry["COLORS"] = [[0, 0, 0], [0, 200, 0]]
    register_custom(make_cfg(data_root, entry))
    meta = MetadataCatalog.get("own_semantic")
    assert meta.stuff_classes == ["background", "leaf"] and meta.stuff_colors[1] == [0, 200, 0]


def test_survives_dump_reload_pickle_and_command_line(data_root):
    cfg = make_cfg(data_root, PANOPTIC, SEMANTIC)
    assert cfg.DATASETS.CUSTOM == [PANOPTIC, SEMANTIC]
    (data_root / "dumped.yaml").write_text(cfg.dump())
    again = get_cfg_from_file(str(data_root / "dumped.yaml"), [])
    assert again.DATASETS.CUSTOM == cfg.DATASETS.CUSTOM
    assert pickle.loads(pickle.dumps(cfg)).DATASETS.CUSTOM == cfg.DATASETS.CUSTOM
    assert cfg.clone().DATASETS.CUSTOM == cfg.DATASETS.CUSTOM
    cfg.merge_from_list(["DATASETS.CUSTOM", str([INSTANCES])])
    assert cfg.DATASETS.CUSTOM == [INSTANCES]
    register_custom(again)
    assert {"own_panoptic", "own_semantic"} <= set(DatasetCatalog.list())
    json.dumps(again.DATASETS.CUSTOM)


def without(entry, key):
    return {k: v for k, v in entry.items() if k != key}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("leaves", r"CUSTOM\[0\] must be a dict with NAME and FORMAT, not 'leaves'"),
        (without(SEMANTIC, "NAME"), r"CUSTOM\[0\]: NAME must be a name .* not None"),
        (without(SEMANTIC, "FORMAT"), r"CUSTOM\[0\] \(own_semantic\): FORMAT is None; known are"),
        ({**SEMANTIC, "FORMAT": "voc"}, "FORMAT is 'voc'; known are coco_panoptic, coco_inst"),
        ({**SEMANTIC, "FORMAT": ["semantic"]}, r"FORMAT is \['semantic'\]; known are"),
        ({**SEMANTIC, "IMAGES": "x"}, r"\(own_semantic\): unknown key 'IMAGES'; semantic takes"),
        ({**INSTANCES, "PANOPTIC_JSON": "x"}, "unknown key 'PANOPTIC_JSON'; coco_instances"),
        (without(SEMANTIC, "CLASSES"), "semantic needs CLASSES too"),
        ({**SEMANTIC, "IMAGE_ROOT": None}, "IMAGE_ROOT must be a path, not None"),
        ({**SEMANTIC, "CLASSES": 5}, "CLASSES must be a list, not 5"),
        ({**SEMANTIC, "MAX_IMAGES": "3"}, "MAX_IMAGES must be a whole number, not '3'"),
        ({**SEMANTIC, "IGNORE_LABEL": 1}, "ignore_label 1 is also the index of class 'leaf'"),
    ],
)
def test_errors_name_the_entry(data_root, entry, message):
    with pytest.raises(ValueError, match=message):
        register_custom(make_cfg(data_root, entry))


def test_names_and_paths_that_do_not_fit(data_root):
    with pytest.raises(ValueError, match=r"CUSTOM\[1\]: the name 'own_semantic' comes twice"):
        register_custom(make_cfg(data_root, SEMANTIC, {**SEMANTIC, "MAX_IMAGES": 3}))
    with pytest.raises(ValueError, match=r"'coco_2017_val' is taken"):
        register_custom(make_cfg(data_root, {**SEMANTIC, "NAME": "coco_2017_val"}))
    missing = {**SEMANTIC, "NAME": "other", "IMAGE_ROOT": "nowhere"}
    with pytest.raises(FileNotFoundError, match=r"'other': no folder .*nowhere for the pictures"):
        register_custom(make_cfg(data_root, missing))
