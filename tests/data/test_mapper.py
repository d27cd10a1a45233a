import copy
import pickle
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from knet.data import (
    InvertColors,
    KNetDatasetMapper,
    PermuteChannels,
    add_data_config,
    build_knet_augmentation,
    register_coco_panoptic,
    register_shapes,
    write_panoptic_png,
)

HEIGHT, WIDTH = 40, 60
GREEN = (0, 255, 0)


def make_mapper(*augmentations, is_train=True, **arguments):
    return KNetDatasetMapper(is_train, augmentations=augmentations, image_format="RGB", **arguments)


def make_cfg(name="shapes_train", **inputs):
    cfg = get_cfg()
    add_data_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.INPUT.FORMAT = "RGB"
    for key, value in inputs.items():
        cfg.merge_from_list([f"INPUT.{key.replace('__', '.')}", value])
    return cfg


@pytest.fixture
def box() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:22, 8:30] = True
    return mask


@pytest.fixture
def image_file(tmp_path, box) -> Path:
    """A black picture with one green box."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[box] = GREEN
    Image.fromarray(image).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def panoptic_record(image_file: Path, box: np.ndarray) -> dict:
    """The box (thing 1), stuff 3, a crowd of things 0, void below."""
    ids = np.full((HEIGHT, WIDTH), 900, np.uint32)
    ids[box] = 70001
    ids[30:35, 50:] = 12
    ids[36:] = 0
    write_panoptic_png(str(image_file.parent / "pan.png"), ids)
    return {
        "file_name": str(image_file),
        "image_id": 7,
        "pan_seg_file_name": str(image_file.parent / "pan.png"),
        "segments_info": [
            {"id": 70001, "category_id": 1, "isthing": True, "iscrowd": 0},
            {"id": 900, "category_id": 3, "isthing": False, "iscrowd": 0},
            {"id": 12, "category_id": 0, "isthing": True, "iscrowd": 1},
            {"id": 13, "category_id": 0, "isthing": True, "iscrowd": 0},  # not in the PNG
        ],
    }


@pytest.fixture
def record(image_file, box) -> dict:
    return panoptic_record(image_file, box)


def forms_of(mask: np.ndarray) -> dict:
    """One mask as polygon, compressed RLE, uncompressed RLE and array."""
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    flat = mask.ravel(order="F").astype(np.int8)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {
        "polygon": [[float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]],
        "rle": mask_util.encode(np.asfortranarray(mask.astype(np.uint8))),
        "counts": {"size": list(mask.shape), "counts": counts},
        "array": mask,
    }


def instance_record(image_file: Path, segmentation) -> dict:
    annotation = {"category_id": 1, "iscrowd": 0, "segmentation": segmentation}
    return {"file_name": str(image_file), "image_id": 7, "annotations": [annotation]}


def test_panoptic(record, box):
    result = make_mapper(thing_ids=range(2), num_classes=4)(record)
    assert result["image"].dtype == torch.uint8 and result["image"].shape == (3, HEIGHT, WIDTH)
    assert (result["height"], result["width"], result["image_id"]) == (HEIGHT, WIDTH, 7)
    instances = result["instances"]
    assert instances.image_size == (HEIGHT, WIDTH)
    assert instances.gt_classes.tolist() == [1] and instances.gt_classes.dtype == torch.int64
    assert instances.gt_masks.tensor.dtype == torch.bool
    np.testing.assert_array_equal(instances.gt_masks.tensor[0].numpy(), box)
    expected = np.full((HEIGHT, WIDTH), 3)
    expected[box] = 1
    expected[30:35, 50:] = 0
    expected[36:] = 255
    assert result["sem_seg"].dtype == torch.int64
    np.testing.assert_array_equal(result["sem_seg"].numpy(), expected)


@pytest.mark.parametrize("form", ["polygon", "rle", "counts", "array"])
def test_instance_annotations(image_file, box, form):
    result = make_mapper(thing_ids=range(2))(instance_record(image_file, forms_of(box)[form]))
    np.testing.assert_array_equal(result["instances"].gt_masks.tensor[0].numpy(), box)
    assert result["instances"].gt_classes.tolist() == [1]
    assert "sem_seg" not in result


def test_many_overlapping_masks(image_file):
    """More than eight masks: they travel eight to a byte."""
    rng = np.random.default_rng(0)
    masks = rng.random((19, HEIGHT, WIDTH)) < 0.3
    record = instance_record(image_file, masks[0])
    record["annotations"] = [
        {"category_id": i % 3, "segmentation": mask} for i, mask in enumerate(masks)
    ]
    instances = make_mapper(T.HFlipTransform(WIDTH))(record)["instances"]
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), masks[:, :, ::-1])
    assert instances.gt_classes.tolist() == [i % 3 for i in range(19)]
    resized = make_mapper(T.Resize((90, 70)))(record)["instances"].gt_masks.tensor.numpy()
    for mask, before in zip(resized, masks):
        alone = Image.fromarray(before.astype(np.uint8)).resize((70, 90), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(mask, np.array(alone).astype(bool))


AUGMENTATIONS = {
    "none": [],
    "flip": [T.RandomFlip(prob=1.0)],
    "vertical": [T.RandomFlip(prob=1.0, horizontal=False, vertical=True)],
    "larger": [T.Resize((100, 120))],
    "smaller": [T.Resize((31, 37))],
    "crop": [T.CropTransform(13, 6, 40, 30)],
    "all": [T.Resize((97, 131)), T.CropTransform(20, 10, 90, 70), T.RandomFlip(prob=1.0)],
}


@pytest.mark.parametrize("source", ["panoptic", "polygon", "rle", "semantic"])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_labels_follow_the_picture(image_file, box, name, source):
    if source == "panoptic":
        record = panoptic_record(image_file, box)
    elif source == "semantic":
        Image.fromarray(box.astype(np.uint8)).save(image_file.parent / "sem.png")
        record = {"file_name": str(image_file), "sem_seg_file_name": image_file.parent / "sem.png"}
        record["sem_seg_file_name"] = str(record["sem_seg_file_name"])
    else:
        record = instance_record(image_file, forms_of(box)[source])
    result = make_mapper(*AUGMENTATIONS[name])(record)
    green = result["image"][1].numpy() > 127
    found = []
    if "instances" in result:
        found.append(result["instances"].gt_masks.tensor[0].numpy())
        assert result["instances"].image_size == green.shape
    if "sem_seg" in result:
        found.append(result["sem_seg"].numpy() == 1)
    assert found and 0 < green.sum() < green.size
    for mask in found:
        assert mask.shape == green.shape
        overlap = (mask & green).sum() / (mask | green).sum()
        # The picture is resized smoothly, labels are not: edges may differ by a pixel's part.
        assert overlap == 1 if name in ("none", "flip", "vertical", "crop") else overlap > 0.9


@pytest.mark.parametrize("source", ["panoptic", "polygon"])
def test_emptied_masks_are_dropped(image_file, box, source):
    record = (
        panoptic_record(image_file, box)
        if source == "panoptic"
        else instance_record(image_file, forms_of(box)["polygon"])
    )
    instances = make_mapper(T.CropTransform(31, 0, 20, 30))(record)["instances"]
    assert len(instances) == 0
    assert instances.gt_masks.tensor.shape == (0, 30, 20)
    assert instances.gt_masks.tensor.dtype == torch.bool
    assert instances.gt_classes.shape == (0,) and instances.gt_classes.dtype == torch.int64


def test_pictures_without_things(image_file, record):
    instances = make_mapper()(
        {**record, "segments_info": record["segments_info"][1:]}
        | {"pan_seg_file_name": _only_stuff(image_file)}
    )["instances"]
    assert instances.gt_masks.tensor.shape == (0, HEIGHT, WIDTH)
    empty = {"file_name": str(image_file), "annotations": []}
    instances = make_mapper(T.Resize((20, 30)))(empty)["instances"]
    assert instances.gt_masks.tensor.shape == (0, 20, 30)


def _only_stuff(image_file: Path) -> str:
    path = str(image_file.parent / "stuff.png")
    write_panoptic_png(path, np.full((HEIGHT, WIDTH), 900))
    return path


def test_crowds_are_no_instances(image_file, box):
    record = instance_record(image_file, forms_of(box)["rle"])
    record["annotations"].append({**record["annotations"][0], "iscrowd": 1})
    assert len(make_mapper()(record)["instances"]) == 1


def test_panoptic_labels_go_before_semantic_ones(record):
    record["sem_seg_file_name"] = "does not exist"
    assert "sem_seg" in make_mapper()(record)


def test_semantic_labels(image_file, box):
    labels = np.where(box, 2, 77).astype(np.uint8)
    Image.fromarray(labels).save(image_file.parent / "sem.png")
    record = {
        "file_name": str(image_file),
        "sem_seg_file_name": str(image_file.parent / "sem.png"),
    }
    result = make_mapper(num_classes=3, ignore_label=77)(record)
    assert set(result["sem_seg"].unique().tolist()) == {2, 255}
    assert "instances" not in result
    with pytest.raises(ValueError, match=r"sem\.png: label 77, but there are 3, 0 to 2"):
        make_mapper(num_classes=3)(record)


def test_targets(record, image_file, box):
    assert "sem_seg" not in make_mapper(targets=["instances"])(record)
    assert "instances" not in make_mapper(targets=["sem_seg"])(record)
    annotations_only = instance_record(image_file, forms_of(box)["rle"])
    with pytest.raises(ValueError, match=r"a\.png: the record has no labels for 'sem_seg'"):
        make_mapper(targets=["instances", "sem_seg"])(annotations_only)
    with pytest.raises(ValueError, match=r"KNET_TARGETS holds .'boxes'"):
        make_mapper(targets=["boxes"])
    with pytest.raises(ValueError, match="256 classes"):
        make_mapper(num_classes=256)


def test_inference_reads_no_labels(image_file):
    record = {"file_name": str(image_file), "image_id": 1, "pan_seg_file_name": "missing"}
    result = make_mapper(T.Resize((20, 30)), is_train=False)(record)
    assert set(result) == {"image", "height", "width", "file_name", "image_id"}
    assert result["image"].shape == (3, 20, 30)
    assert (result["height"], result["width"]) == (HEIGHT, WIDTH)


def test_record_is_left_unchanged(record):
    before = copy.deepcopy(record)
    make_mapper(T.RandomFlip())(record)
    assert record == before


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    record = {"file_name": str(tmp_path / "turned.jpg"), "annotations": []}
    result = make_mapper()(record)
    assert result["image"].shape == (3, 60, 40)
    assert (result["height"], result["width"]) == (60, 40)


def test_picture_errors(tmp_path, record):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        make_mapper()({**record, "file_name": str(tmp_path / "nowhere.png")})
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        make_mapper()({**record, "file_name": str(tmp_path / "broken.png")})
    with pytest.raises(SizeMismatchError, match=r"a\.png"):
        make_mapper()({**record, "height": 99, "width": WIDTH})


def test_panoptic_errors(tmp_path, record):
    mapper = make_mapper(thing_ids=range(2), num_classes=4)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        mapper({**record, "pan_seg_file_name": str(tmp_path / "none.png")})
    write_panoptic_png(str(tmp_path / "small.png"), np.full((10, 20), 900))
    with pytest.raises(ValueError, match=r"small\.png is 20x10 .*a\.png is 60x40"):
        mapper({**record, "pan_seg_file_name": str(tmp_path / "small.png")})
    with pytest.raises(ValueError, match=r"pan\.png: image 7: segment id 70001 \(264 pix"):
        mapper({**record, "segments_info": record["segments_info"][1:]})
    for position, category in ((0, 2), (0, -1), (1, 4)):
        wrong = copy.deepcopy(record)
        wrong["segments_info"][position]["category_id"] = category
        with pytest.raises(ValueError, match=rf"pan\.png: .*class {category}, but there are"):
            mapper(wrong)


def test_annotation_errors(image_file, box):
    mapper = make_mapper(thing_ids=range(1))
    for segmentation, message in (
        (None, "an instance without a mask"),
        ([], "an instance without a mask"),
        ([[1, 2, 3, 4]], "a polygon needs three or more points"),
        ({"size": [3, 4], "counts": [12]}, "an RLE of size"),
        (box[:5], "a mask of size"),
        (box, "instance class 1, but there are 1"),
    ):
        with pytest.raises(ValueError, match=rf"a\.png: image 7.*: {message}"):
            mapper(instance_record(image_file, segmentation))


def test_label_map_errors(tmp_path, image_file):
    def run(labels):
        Image.fromarray(labels).save(tmp_path / "sem.png")
        record = {"file_name": str(image_file), "sem_seg_file_name": str(tmp_path / "sem.png")}
        make_mapper(num_classes=3)(record)

    run(np.full((HEIGHT, WIDTH), 255, np.uint8))
    with pytest.raises(ValueError, match=r"sem\.png: a label map has one channel"):
        run(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(ValueError, match=r"sem\.png is 60x4 "):
        run(np.zeros((4, WIDTH), np.uint8))
    with pytest.raises(ValueError, match=r"sem\.png: label 3, but there are 3, 0 to 2"):
        run(np.full((HEIGHT, WIDTH), 3, np.uint8))
    (tmp_path / "sem.png").unlink()
    record = {"file_name": str(image_file), "sem_seg_file_name": str(tmp_path / "sem.png")}
    with pytest.raises(FileNotFoundError, match=r"no semantic labels at .*sem\.png"):
        make_mapper()(record)


def test_more_than_255_segments(tmp_path):
    ids = np.arange(1, 301, dtype=np.uint32).reshape(15, 20) * 1000
    write_panoptic_png(str(tmp_path / "pan.png"), ids)
    Image.new("RGB", (20, 15)).save(tmp_path / "a.png")
    segments = [{"id": int(i), "category_id": 0, "isthing": True} for i in ids.ravel()]
    record = {
        "file_name": str(tmp_path / "a.png"),
        "pan_seg_file_name": str(tmp_path / "pan.png"),
        "segments_info": segments,
    }
    masks = make_mapper(T.Resize((30, 40)))(record)["instances"].gt_masks.tensor
    assert masks.shape == (300, 30, 40)
    assert (masks.sum((1, 2)) == 4).all() and (masks.sum(0) == 1).all()


def test_from_config_on_shapes(shapes_root):
    register_shapes(shapes_root)
    cfg = make_cfg(MIN_SIZE_TRAIN=(96,), KNET_COLOR_AUG=["permute_channels", "invert"])
    mapper = KNetDatasetMapper(cfg, True)
    assert (mapper.thing_ids, mapper.num_classes) == ([0, 1, 2, 3], 8)
    for record in DatasetCatalog.get("shapes_train"):
        result = mapper(record)
        assert result["image"].shape == (3, 96, 96)
        assert len(result["instances"]) == sum(s["isthing"] for s in record["segments_info"])
        areas = result["instances"].gt_masks.tensor.sum((1, 2)).tolist()
        assert areas == [s["area"] for s in record["segments_info"] if s["isthing"]]
        assert result["sem_seg"].max() < 8
    assert pickle.loads(pickle.dumps(mapper))(record)["height"] == 96


def test_instance_and_panoptic_records_give_the_same_masks(shapes_root):
    register_shapes(shapes_root)
    mapper = make_mapper(T.Resize((120, 80)))
    pairs = zip(DatasetCatalog.get("shapes_val"), DatasetCatalog.get("shapes_val_instance"))
    for panoptic, instance in pairs:
        one, other = mapper(panoptic)["instances"], mapper(instance)["instances"]
        assert torch.equal(one.gt_classes, other.gt_classes)
        assert torch.equal(one.gt_masks.tensor, other.gt_masks.tensor)


@pytest.mark.parametrize("sampling", ["choice", "range"])
def test_coco_recipe_on_real_images(coco_root, sampling):
    annotations = coco_root / "annotations"
    register_coco_panoptic(
        "coco_fixture",
        image_root=coco_root / "images" / "train",
        panoptic_root=annotations / "panoptic_train",
        panoptic_json=annotations / "panoptic_train.json",
    )
    cfg = make_cfg("coco_fixture", MIN_SIZE_TRAIN=(320, 400), MIN_SIZE_TRAIN_SAMPLING=sampling)
    mapper = KNetDatasetMapper(cfg, True)
    assert (mapper.thing_ids, mapper.num_classes) == (list(range(80)), 133)
    for record in DatasetCatalog.get("coco_fixture"):
        result = mapper(record)
        assert 320 <= min(result["image"].shape[1:]) <= 400
        assert result["sem_seg"].shape == result["image"].shape[1:]
        instances = result["instances"]
        assert 0 < len(instances) <= sum(s["isthing"] for s in record["segments_info"])
        for mask, label in zip(instances.gt_masks.tensor, instances.gt_classes):
            assert (result["sem_seg"][mask] == label).all()


def test_crop_from_config(shapes_root):
    register_shapes(shapes_root)
    cfg = make_cfg(
        MIN_SIZE_TRAIN=(128,),
        CROP__ENABLED=True,
        CROP__TYPE="absolute",
        CROP__SIZE=[64, 80],
        CROP__SINGLE_CATEGORY_MAX_AREA=0.75,
    )
    mapper = KNetDatasetMapper(cfg, True)
    for record in DatasetCatalog.get("shapes_val"):
        result = mapper(record)
        assert result["image"].shape == (3, 64, 80) and result["sem_seg"].shape == (64, 80)
        assert result["instances"].gt_masks.tensor.shape[1:] == (64, 80)
        assert result["instances"].gt_masks.tensor.flatten(1).any(1).all()


def test_test_time_config(shapes_root):
    register_shapes(shapes_root)
    cfg = make_cfg("shapes_val", MIN_SIZE_TEST=48, KNET_COLOR_AUG=["invert"])
    result = KNetDatasetMapper(cfg, False)(DatasetCatalog.get("shapes_val")[0])
    assert result["image"].shape == (3, 48, 48) and result["height"] == 96


def test_config_errors(shapes_root):
    with pytest.raises(ValueError, match="KNET_COLOR_AUG holds 'sepia'"):
        build_knet_augmentation(make_cfg(KNET_COLOR_AUG=["sepia"]), True)
    with pytest.raises(ValueError, match="RANDOM_FLIP must be"):
        build_knet_augmentation(make_cfg(RANDOM_FLIP="diagonal"), True)
    with pytest.raises(ValueError, match="without `_separated`"):
        KNetDatasetMapper(make_cfg("coco_2017_val_100_panoptic_separated"), True)


def test_colour_augmentations():
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    inverted = T.AugInput(image.copy())
    T.AugmentationList([InvertColors(prob=1.0)])(inverted)
    np.testing.assert_array_equal(inverted.image, 255 - image)
    seen = set()
    for _ in range(60):
        permuted = T.AugInput(image.copy())
        T.AugmentationList([PermuteChannels()])(permuted)
        order = [
            int(np.flatnonzero((image == c[..., None]).all((0, 1)))[0])
            for c in permuted.image.transpose(2, 0, 1)
        ]
        seen.add(tuple(order))
    assert len(seen) == 6


def test_in_a_loader_with_workers(shapes_root):
    register_shapes(shapes_root)
    mapper = KNetDatasetMapper(make_cfg(MIN_SIZE_TRAIN=(96,)), True)
    records = DatasetCatalog.get("shapes_train")
    loader = build_detection_train_loader(
        records, mapper=mapper, total_batch_size=4, num_workers=1, aspect_ratio_grouping=False
    )
    batch = next(iter(loader))
    assert len(batch) == 4 and all({"image", "instances", "sem_seg"} <= set(b) for b in batch)
