"""Large pictures kept at the size of the training give the same samples."""

import copy
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from knet.data.augmentation import Labels
from knet.data.custom import register_custom
from knet.data.defects import DataError
from knet.data.loader import seed_everything
from knet.data.mapper import KNetDatasetMapper
from knet.data.reduced import ReducedPictures

from .broken_sets import FORMATS, make_good
from .test_defects import make_cfg


def make_mappers(tmp_path, form, shortest):
    """With and without the folder, of records twice or more as large as the training's pictures."""
    entry = make_good(form, tmp_path / "set")
    cfg = make_cfg(entry)
    register_custom(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (shortest,), 1000
    cfg.INPUT.KNET_COLOR_AUG = []
    plain = KNetDatasetMapper(cfg, True)
    cfg.INPUT.REDUCED_FOLDER = str(tmp_path / "reduced")
    return plain, KNetDatasetMapper(cfg, True), DatasetCatalog.get(entry["NAME"])


def sample(mapper, record):
    seed_everything(1, 2, 0, 3)  # the same flips
    return mapper(record)


def assert_same(a, b):
    assert set(a) == set(b)
    assert torch.equal(a["image"], b["image"])
    assert (a["height"], a["width"]) == (b["height"], b["width"])
    if "sem_seg" in a:
        assert torch.equal(a["sem_seg"], b["sem_seg"])
    if "instances" in a:
        assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)
        assert torch.equal(a["instances"].gt_masks.tensor, b["instances"].gt_masks.tensor)


@pytest.mark.parametrize("form", FORMATS)
def test_samples_are_equal_bit_by_bit(tmp_path, form):
    plain, reduced, records = make_mappers(tmp_path, form, 16)
    for _ in range(2):  # written, then read
        for record in records:
            assert_same(sample(plain, record), sample(reduced, record))
    assert len(list((tmp_path / "reduced").iterdir())) == len(records)


def test_equal_records_have_one_file(tmp_path):
    """Whatever their objects share, and in whatever order their keys stand."""
    name = str(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(name)
    rle = {"size": [4, 4], "counts": b"\xff0"}
    mine = {"file_name": name, "annotations": [{"segmentation": rle}, {"segmentation": rle}],
            "polygon": np.array([1.5, 2])}  # fmt: skip
    same = {key: copy.deepcopy(mine[key]) for key in reversed(mine)}
    same["annotations"] = [{"segmentation": dict(rle, size=[4, 4])} for _ in range(2)]
    other = {**mine, "annotations": []}
    keys = [ReducedPictures(tmp_path, 16, 32)._key(record) for record in (mine, same, other)]
    assert keys[0] == keys[1] != keys[2]


def test_files_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    _, mapper, (record, *_) = make_mappers(tmp_path, "coco_instances", 16)
    before = mapper(record)
    opened = []
    real = mapper._read_files
    monkeypatch.setattr(mapper, "_read_files", lambda r: opened.append(r) or real(r))
    mapper(record)
    assert not opened
    picture = Image.open(record["file_name"])
    Image.fromarray(255 - np.array(picture.convert("RGB"))).save(record["file_name"])
    os.utime(record["file_name"], ns=(1, 1))
    after = mapper(record)
    assert opened and not torch.equal(before["image"], after["image"])
    mapper({**record, "annotations": []})
    assert len(opened) == 2


def test_pictures_that_are_hardly_larger_stay_as_they_are(tmp_path):
    plain, reduced, records = make_mappers(tmp_path, "semantic", 1000)
    assert_same(sample(plain, records[0]), sample(reduced, records[0]))
    assert not (tmp_path / "reduced").exists()


def test_missing_pictures_and_damaged_files_are_named(tmp_path):
    _, mapper, (record, *_) = make_mappers(tmp_path, "coco_instances", 16)
    mapper(record)
    (path,) = (tmp_path / "reduced").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{path}: damaged .*REDUCED_FOLDER"):
        mapper(record)
    with pytest.raises(DataError, match=r"missing\.png"):
        mapper({**record, "file_name": str(tmp_path / "missing.png")})


def test_masks_that_vanish_are_no_instances(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)

    def read(record):
        masks = np.zeros((64, 64, 2), np.uint8, order="F")
        masks[1, 1, 0], masks[8:40, 8:40, 1] = 1, 1
        return pixels, Labels(np.array([3, 4]), mask_util.encode(masks)), (64, 64)

    (tmp_path / "a.png").write_bytes(b"")
    record = {"file_name": str(tmp_path / "a.png")}
    reduced = ReducedPictures(tmp_path / "reduced", 16, 100)
    first, again = reduced.read(record, read), reduced.read(record, read)
    assert first[1].masks == again[1].masks and len(first[1].masks) == 2
    assert (first[1].classes == again[1].classes).all() and first[2] == again[2] == (64, 64)
    assert first[0].shape == (16, 16, 3)
