import json
import os
import sys
import time

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic
from PIL import Image

from knet.data import KNetDatasetMapper, add_data_config
from knet.files import UNFINISHED

SCRIPT = "prepare_cityscapes"
HEIGHT, WIDTH = 16, 32


def write_image(base, split, city, number):
    """Road, with a car on it at the left and a group of persons at the right; out of roi above."""
    pictures, labels = base / "leftImg8bit" / split / city, base / "gtFine" / split / city
    pictures.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    stem = f"{city}_{number:06d}_000019"
    Image.new("RGB", (WIDTH, HEIGHT)).save(pictures / f"{stem}_leftImg8bit.png")
    boxes = {
        "road": (0, 0, WIDTH - 1, HEIGHT - 1),
        "out of roi": (0, 0, WIDTH - 1, 3),
        "car": (2, 8, 9, 11),
        "persongroup": (20, 8, 27, 11),
    }
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    objects = []
    for name, (x0, y0, x1, y1) in boxes.items():
        value = {"road": 7, "out of roi": 3, "car": 26001, "persongroup": 24}[name]
        ids[y0 : y1 + 1, x0 : x1 + 1] = value
        polygon = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
        objects.append({"label": name, "polygon": polygon})
    content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
    (labels / f"{stem}_gtFine_polygons.json").write_text(json.dumps(content))
    Image.fromarray(ids).save(labels / f"{stem}_gtFine_instanceIds.png")
    plain = np.where(ids > 999, ids // 1000, ids).astype(np.uint8)
    Image.fromarray(plain).save(labels / f"{stem}_gtFine_labelIds.png")


@pytest.fixture
def root(tmp_path):
    base = tmp_path / "cityscapes"
    for split, city, number in (("train", "ulm", 0), ("train", "jena", 1), ("val", "bonn", 0)):
        write_image(base, split, city, number)
    return tmp_path


@pytest.fixture
def prepared(script, root):
    pytest.importorskip("cityscapesscripts", reason="pip install cityscapesscripts")
    assert script.prepare(root) == (3, 3)
    return root


def expected_labels():
    labels = np.zeros((HEIGHT, WIDTH), int)
    labels[:4] = 255
    labels[8:12, 2:10] = 13
    labels[8:12, 20:28] = 11
    return labels


def make_mapper(name, *targets):
    cfg = get_cfg()
    add_data_config(cfg)
    cfg.DATASETS.TRAIN = (name,)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (HEIGHT,), "none"
    cfg.INPUT.KNET_TARGETS = list(targets)
    return KNetDatasetMapper(cfg, True)


def test_semantic(prepared):
    base = prepared / "cityscapes"
    records = load_cityscapes_semantic(
        str(base / "leftImg8bit" / "train"), str(base / "gtFine" / "train")
    )
    assert len(records) == 2
    mapper = make_mapper("cityscapes_fine_sem_seg_train", "sem_seg")
    assert mapper.num_classes == 19
    for record in records:
        np.testing.assert_array_equal(mapper(record)["sem_seg"].numpy(), expected_labels())


def test_panoptic(prepared):
    base = prepared / "cityscapes"
    meta = MetadataCatalog.get("cityscapes_fine_panoptic_val").as_dict()
    (record,) = load_cityscapes_panoptic(
        str(base / "leftImg8bit" / "val"),
        str(base / "gtFine" / "cityscapes_panoptic_val"),
        str(base / "gtFine" / "cityscapes_panoptic_val.json"),
        meta,
    )
    result = make_mapper("cityscapes_fine_panoptic_val", "sem_seg")(record)
    assert set(result) == {"image", "height", "width", "file_name", "image_id", "sem_seg"}
    np.testing.assert_array_equal(result["sem_seg"].numpy(), expected_labels())
    result = make_mapper("cityscapes_fine_panoptic_val")(record)
    assert result["instances"].gt_classes.tolist() == [13]  # the group of persons is a crowd


def test_second_call_writes_what_is_missing_only(script, prepared, capsys):
    annotations = prepared / "cityscapes" / "gtFine"
    assert script.prepare(prepared) == (0, 0)
    next(annotations.glob("train/*/*_labelTrainIds.png")).unlink()
    (annotations / "cityscapes_panoptic_val.json").unlink()
    (annotations / f"cityscapes_panoptic_val{UNFINISHED}1").mkdir()  # of an interrupted run
    script.main(["--root", str(prepared)])
    assert "1 labelTrainIds and 1 panoptic PNGs written" in capsys.readouterr().out
    assert not list(annotations.rglob(f"*{UNFINISHED}*"))
    for part in ("polygons.json", "instanceIds.png"):  # corrected annotations
        later = time.time() + 9  # the clock of files is coarse
        os.utime(next(annotations.glob(f"val/*/*_{part}")), (later, later))
    assert script.prepare(prepared) == (1, 1)


def test_what_is_missing(script, root, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*leftImg8bit.*gtFine_trainvaltest\.zip"
    ):
        script.prepare(tmp_path / "nowhere")
    next((root / "cityscapes").rglob("bonn*_instanceIds.png")).unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*bonn.*instanceIds\.png, which .*bonn"):
        script.prepare(root)


def test_unknown_label_names_the_file(script, root):
    pytest.importorskip("cityscapesscripts", reason="pip install cityscapesscripts")
    polygons = next((root / "cityscapes").rglob("jena*_polygons.json"))
    polygons.write_text(polygons.read_text().replace('"car"', '"ship"'))
    with pytest.raises(ValueError, match=r"jena_.*polygons\.json holds a label"):
        script.prepare(root, ["train"])


def test_without_the_package(script, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "cityscapesscripts.preparation.json2labelImg", None)
    with pytest.raises(ModuleNotFoundError, match="pip install cityscapesscripts"):
        script.prepare(root)
