import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator
from detectron2.utils.visualizer import Visualizer

from knet.data import (
    datasets_root,
    read_panoptic_png,
    register_coco_instances,
    register_coco_panoptic,
    register_shapes,
)
from knet.data.custom import register_builtin

THINGS = ["disc", "square", "triangle", "star"]
STUFF = ["plain", "stripes", "checks", "dots"]


def _coco(root: Path, split: str = "val") -> dict[str, Path]:
    return {
        "image_root": root / "images" / split,
        "panoptic_root": root / "annotations" / f"panoptic_{split}",
        "panoptic_json": root / "annotations" / f"panoptic_{split}.json",
    }


def _write(tmp_path: Path, content: dict) -> dict[str, Path]:
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "panoptic").mkdir(exist_ok=True)
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return {
        "image_root": tmp_path / "images",
        "panoptic_root": tmp_path / "panoptic",
        "panoptic_json": tmp_path / "panoptic.json",
    }


@pytest.fixture
def content() -> dict:
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}],
        "categories": [
            {"id": 9, "name": "sky", "isthing": 0},
            {"id": 4, "name": "cat", "isthing": 1, "color": [1, 2, 3]},
            {"id": 2, "name": "dog", "isthing": 1},
        ],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "a.png",
                "segments_info": [{"id": 5, "category_id": 4}, {"id": 6, "category_id": 9}],
            }
        ],
    }


def test_metadata(shapes_root):
    register_shapes(shapes_root)
    meta = MetadataCatalog.get("shapes_train")
    assert meta.thing_classes == THINGS
    assert meta.stuff_classes == THINGS + STUFF
    assert meta.thing_dataset_id_to_contiguous_id == {3: 0, 5: 1, 8: 2, 13: 3}
    everything = {3: 0, 5: 1, 8: 2, 13: 3, 2: 4, 6: 5, 9: 6, 14: 7}
    assert meta.stuff_dataset_id_to_contiguous_id == everything
    assert meta.thing_colors == meta.stuff_colors[:4]
    assert meta.stuff_colors[4] == [190, 186, 176]
    assert meta.evaluator_type == "coco_panoptic_seg"
    assert (meta.ignore_label, meta.label_divisor) == (255, 1000)
    for key in ("image_root", "panoptic_root", "panoptic_json", "json_file", "sem_seg_root"):
        assert Path(getattr(meta, key)).exists()
    instance = MetadataCatalog.get("shapes_val_instance")
    assert instance.thing_classes == THINGS and instance.evaluator_type == "coco"


def test_records(shapes_root):
    register_shapes(shapes_root)
    records = DatasetCatalog.get("shapes_train")
    assert len(records) == 24
    for record in records:
        assert record["height"] == record["width"] == 96
        for key in ("file_name", "pan_seg_file_name", "sem_seg_file_name"):
            assert Path(record[key]).is_file()
        ids = read_panoptic_png(record["pan_seg_file_name"])
        assert {s["id"] for s in record["segments_info"]} == set(np.unique(ids).tolist())
        for segment in record["segments_info"]:
            assert segment["isthing"] == (segment["category_id"] < 4)
            assert segment["area"] == (ids == segment["id"]).sum()


def test_instance_records_agree_with_panoptic_ones(shapes_root):
    register_shapes(shapes_root)
    panoptic = {r["image_id"]: r for r in DatasetCatalog.get("shapes_val")}
    instances = DatasetCatalog.get("shapes_val_instance")
    assert {r["image_id"] for r in instances} == set(panoptic)
    for record in instances:
        expected = [s for s in panoptic[record["image_id"]]["segments_info"] if s["isthing"]]
        pick = [(s["category_id"], list(map(float, s["bbox"]))) for s in expected]
        assert [(a["category_id"], a["bbox"]) for a in record["annotations"]] == pick


def test_same_records_as_detectron2(coco_root):
    """On COCO's own files, Detectron2's loader gives the same, but for the size of pictures."""
    register_coco_panoptic("coco_fixture", **_coco(coco_root))
    meta = MetadataCatalog.get("coco_fixture")
    assert (len(meta.thing_classes), len(meta.stuff_classes)) == (80, 133)
    paths = _coco(coco_root)
    theirs = load_coco_panoptic_json(
        str(paths["panoptic_json"]),
        str(paths["image_root"]),
        str(paths["panoptic_root"]),
        meta.as_dict(),
    )
    ours = DatasetCatalog.get("coco_fixture")
    for our, their in zip(ours, theirs):
        assert {key: our[key] for key in their} == their
        assert set(our) - set(their) == {"height", "width"}


def test_same_contiguous_ids_as_builtin_coco(coco_root):
    register_coco_panoptic("coco_fixture", **_coco(coco_root))
    ours = MetadataCatalog.get("coco_fixture")
    builtin = MetadataCatalog.get("coco_2017_val_panoptic")
    assert ours.thing_dataset_id_to_contiguous_id == builtin.thing_dataset_id_to_contiguous_id
    assert ours.stuff_classes == builtin.stuff_classes
    stuff = builtin.stuff_dataset_id_to_contiguous_id
    assert {k: ours.stuff_dataset_id_to_contiguous_id[k] for k in stuff} == stuff


def test_evaluators_and_visualizer_take_the_metadata(shapes_root, tmp_path):
    register_shapes(shapes_root)
    meta = MetadataCatalog.get("shapes_val")
    COCOEvaluator("shapes_val", tasks=("segm",), distributed=False, output_dir=str(tmp_path))
    evaluator = SemSegEvaluator("shapes_val", distributed=False, output_dir=str(tmp_path))
    record = DatasetCatalog.get("shapes_val")[0]
    from PIL import Image

    labels = np.array(Image.open(record["sem_seg_file_name"])).astype(np.int64)
    import torch

    scores = torch.nn.functional.one_hot(torch.from_numpy(labels), 8).permute(2, 0, 1).float()
    evaluator.reset()
    evaluator.process([record], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 100
    image = np.array(Image.open(record["file_name"]))
    segments = [{**s, "isthing": s["isthing"]} for s in record["segments_info"]]
    ids = torch.from_numpy(read_panoptic_png(record["pan_seg_file_name"]).astype(np.int32))
    np.random.seed(0)  # of its colours, of which Python 3.10 makes some that matplotlib refuses
    drawn = Visualizer(image, meta).draw_panoptic_seg(ids, segments).get_image()
    assert drawn.shape == image.shape


def test_missing_colours_are_generated(tmp_path, content):
    register_coco_panoptic("own", **_write(tmp_path, content))
    meta = MetadataCatalog.get("own")
    assert meta.thing_classes == ["dog", "cat"]
    assert meta.stuff_classes == ["dog", "cat", "sky"]
    assert meta.stuff_colors[1] == [1, 2, 3]
    assert len({tuple(color) for color in meta.stuff_colors}) == 3
    assert all(0 <= value <= 255 for color in meta.stuff_colors for value in color)
    assert not hasattr(meta, "json_file") and not hasattr(meta, "sem_seg_root")
    assert "sem_seg_file_name" not in DatasetCatalog.get("own")[0]


def test_nothing_but_categories_is_read_on_registration(tmp_path, content):
    """Annotations that are no JSON at all are noticed only when the records are asked for."""
    paths = _write(tmp_path, content)
    text = json.dumps({"categories": content["categories"]}, indent=1)
    paths["panoptic_json"].write_text(text[:-1] + ', "annotations": [{,]')
    register_coco_panoptic("own", **paths)
    assert MetadataCatalog.get("own").thing_classes == ["dog", "cat"]
    with pytest.raises(ValueError):
        DatasetCatalog.get("own")


def test_the_word_categories_elsewhere(tmp_path, content):
    content = {"info": {"categories": [{"id": 1}]}, **content}
    register_coco_panoptic("own", **_write(tmp_path, content))
    assert MetadataCatalog.get("own").stuff_classes == ["dog", "cat", "sky"]


def test_twice_the_same_is_fine_and_other_paths_are_not(tmp_path, content):
    paths = _write(tmp_path, content)
    register_coco_panoptic("own", **paths)
    register_coco_panoptic("own", **{k: str(v) for k, v in paths.items()})
    with pytest.raises(ValueError, match=r"'own' is registered already.*panoptic_root"):
        register_coco_panoptic("own", **{**paths, "panoptic_root": tmp_path})
    with pytest.raises(ValueError, match=r"coco_2017_val_panoptic.*taken"):
        register_coco_panoptic("coco_2017_val_panoptic", **paths)


def test_instances(coco_root):
    annotations = coco_root / "annotations" / "instances_val.json"
    arguments = {"image_root": coco_root / "images" / "val", "json_file": annotations}
    register_coco_instances("coco_fixture_instances", **arguments)
    register_coco_instances("coco_fixture_instances", **arguments)
    assert len(MetadataCatalog.get("coco_fixture_instances").thing_classes) == 80
    records = DatasetCatalog.get("coco_fixture_instances")
    assert (len(records), sum(len(r["annotations"]) for r in records)) == (3, 23)


@pytest.mark.parametrize("key", ["image_root", "panoptic_root", "panoptic_json", "sem_seg_root"])
def test_missing_paths(tmp_path, content, key):
    paths = {**_write(tmp_path, content), key: tmp_path / "nowhere"}
    with pytest.raises(FileNotFoundError, match=r"'own'.*nowhere.*correct the path"):
        register_coco_panoptic("own", **paths)
    assert "own" not in DatasetCatalog


def test_shapes_not_written(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert datasets_root() == tmp_path
    with pytest.raises(FileNotFoundError, match=r"shapes.train.*datasets/make_shapes.py"):
        register_shapes()


def test_unusable_categories(tmp_path, content):
    category = content["categories"][0]
    for change, message in (
        ({"id": 4}, r"panoptic\.json: category id 4 comes twice, as 'sky' and 'cat'"),
        ({"isthing": None}, r"panoptic\.json: category .*lacks isthing; .*an instances JSON"),
    ):
        changed = {k: v for k, v in {**category, **change}.items() if v is not None}
        paths = _write(tmp_path, {**content, "categories": [changed, *content["categories"][1:]]})
        with pytest.raises(ValueError, match=message):
            register_coco_panoptic("own", **paths)
    with pytest.raises(ValueError, match="has no `categories`"):
        register_coco_panoptic("own", **_write(tmp_path, {"images": []}))


def test_unusable_records(tmp_path, content):
    segment = content["annotations"][0]["segments_info"][1]
    segment["category_id"] = 77
    register_coco_panoptic("own", **_write(tmp_path, content))
    with pytest.raises(
        ValueError, match=r"panoptic\.json: image 1: segment 6: unknown category 77"
    ):
        DatasetCatalog.get("own")
    segment["category_id"] = 9
    content["annotations"][0]["image_id"] = 3
    _write(tmp_path, content)
    with pytest.raises(ValueError, match=r"panoptic\.json: .*image 3: image_id 3 is no image"):
        DatasetCatalog.get("own")


def test_config_keys():
    from knet.data import add_data_config

    cfg = get_cfg()
    add_data_config(cfg)
    assert cfg.INPUT.KNET_TARGETS == []
    assert cfg.INPUT.KNET_COLOR_AUG == [] and cfg.INPUT.KNET_TARGETS == []
    assert cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA == 1.0


def test_photographs_come_with_the_checkout():
    register_builtin(["photos_train"])
    assert len(DatasetCatalog.get("photos_train")) == 4
