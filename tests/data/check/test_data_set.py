"""What the checker says of data sets as a whole, and of data sets beside their config."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from knet.config import get_cfg_from_file
from knet.data import register_custom
from knet.data.check.data_set import add_config_defects, check_dataset
from knet.data.loader import build_train_loader

from ..good_sets import make_good


def make_cfg(train, test=None, *options):
    cfg = get_cfg_from_file("configs/shapes/panoptic.yaml", options)
    cfg.DATASETS.CUSTOM = [train] + ([test] if test else [])
    cfg.DATASETS.TRAIN = (train["NAME"],)
    cfg.DATASETS.TEST = (test["NAME"],) if test else ()
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.MIN_SIZE_TEST = 40
    register_custom(cfg)
    return cfg


def check(cfg):
    """Kind and text of all defects of each data set."""
    reports = [check_dataset(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)]
    add_config_defects(reports, cfg)
    return [{d.kind: str(d) for d in report.defects} for report in reports]


def edit(entry, change):
    path = Path(entry["JSON_FILE"])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return entry


def test_masks_of_0_and_255(tmp_path):
    entry = {**make_good("semantic", tmp_path / "set"), "CLASSES": ["rest", "leaf"]}
    for path in Path(entry["SEM_SEG_ROOT"]).iterdir():
        labels = np.zeros((40, 60), np.uint8)
        labels[10:20] = 255
        Image.fromarray(labels).save(path)
    (found,) = check(make_cfg(entry))
    assert set(found) == {"class-without-labels", "ignored-foreground"}
    assert "no label shows 1 of its 2 classes: leaf" in found["class-without-labels"]
    text = found["ignored-foreground"]
    assert "label 255, which is ignored, covers 25.0 % of the pixels" in text
    assert "prepare_label_pngs.py IN OUT --map 255=1" in text and entry["SEM_SEG_ROOT"] in text


def test_crowds_alone_are_an_error_and_stop_training(tmp_path):
    entry = make_good("coco_instances", tmp_path / "set")
    edit(entry, lambda c: [a.update(iscrowd=1) for a in c["annotations"]])
    cfg = make_cfg(entry)
    report = check_dataset(entry["NAME"])
    (error,) = [defect for defect in report.defects if defect.severity == "error"]
    assert error.kind == "nothing-to-learn" and error.file == entry["JSON_FILE"]
    for filtered in (True, False):
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filtered
        with pytest.raises(ValueError, match=r"annotations\.json: .*all 5 annotations .*crowds"):
            build_train_loader(cfg, lambda record: record, seed=0, start_step=0)


def test_more_objects_than_kernels_and_results(tmp_path):
    def fill(content):
        (first, *_) = content["annotations"]
        for k in range(30):
            x, y = 6 * (k % 10), 6 * (k // 10) + 20
            box = {"bbox": [x, y, 5, 5], "area": 25}
            outline = [[x, y, x + 5, y, x + 5, y + 5, x, y + 5]]
            content["annotations"].append({**first, "id": 100 + k, **box, "segmentation": outline})

    entry = edit(make_good("coco_instances", tmp_path / "set"), fill)
    found = check(make_cfg(entry, None, "MODEL.KNET.NUM_KERNELS", 40))
    assert set(found[0]) == set()
    options = ["MODEL.KNET.NUM_KERNELS", 40, "TEST.DETECTIONS_PER_IMAGE", 20]
    cfg = make_cfg(entry, None, *options)
    text = check(cfg)[0]["too-many-objects"]
    assert "1 of 3 images have more objects than TEST.DETECTIONS_PER_IMAGE (20): 12 of 34" in text
    assert text.endswith("raise TEST.DETECTIONS_PER_IMAGE to 32, the most that an image has")
    cfg.MODEL.KNET.NUM_KERNELS, cfg.TEST.DETECTIONS_PER_IMAGE = 31, 100
    assert "MODEL.KNET.NUM_KERNELS (31): 1 of 34" in check(cfg)[0]["too-many-objects"]


def test_objects_below_two_cells_of_the_mask_grid(tmp_path):
    entry = make_good("coco_instances", tmp_path / "set")
    cfg = make_cfg(entry)  # masks at stride 4, enlarged twice: cells of 2 pixels; objects of 10
    assert check(cfg) == [{}]
    cfg.INPUT.MIN_SIZE_TRAIN = (12, 15)  # of 40: objects are 3.75 pixels wide
    text = check(cfg)[0]["small-objects"]
    assert "4 of 4 objects (100 %) are smaller than 2x2 cells of the mask grid, 2 pixels" in text
    assert "INPUT.MIN_SIZE_TRAIN 15" in text and "MODEL.KNET.IN_FEATURES" in text
    cfg.INPUT.CROP.SIZE, cfg.INPUT.SCALE_JITTER = (24, 24), (0.1, 0.95)  # 60x40 in 23x23 at most
    assert "at INPUT.SCALE_JITTER [0.1, 0.95]" in check(cfg)[0]["small-objects"]
    cfg.INPUT.SCALE_JITTER = (0.1, 1.1)
    assert check(cfg) == [{}]


def test_pictures_of_the_training_in_the_test_set(tmp_path):
    train = make_good("coco_instances", tmp_path / "train")
    test = {**make_good("coco_instances", tmp_path / "test"), "NAME": "others"}
    for k, stem in enumerate("abc"):  # other pictures
        pixels = np.full((40, 60, 3), 50 * k, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"test/images/{stem}.png")
    cfg = make_cfg(train, test)
    assert check(cfg) == [{}, {}]
    shutil.copy(tmp_path / "train/images/b.png", tmp_path / "test/images/c.png")
    text = check(cfg)[1]["picture-in-two-sets"]
    assert f"{tmp_path}/test/images/c.png: data set 'others': the picture is also in" in text
    assert f"{tmp_path}/train/images/b.png of '{train['NAME']}'" in text
    DatasetCatalog.remove("others")
    cfg = make_cfg(train, {**test, "IMAGE_ROOT": train["IMAGE_ROOT"]})
    reports = [check_dataset(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)]
    add_config_defects(reports, cfg)
    assert [len(report.defects) for report in reports] == [0, 3]
