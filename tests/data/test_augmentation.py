"""The published semantic recipe through the mapper, and records of semantic data sets."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from PIL import Image

from knet.data import (
    KNetDatasetMapper,
    add_data_config,
    build_knet_augmentation,
    register_sem_seg,
    register_shapes,
    write_panoptic_png,
)
from knet.data.loader import SeededDataset

RECIPE = [
    "INPUT.MIN_SIZE_TRAIN", (256, 1024),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range",
    "INPUT.MAX_SIZE_TRAIN", 4096,
    "INPUT.CROP.ENABLED", True,
    "INPUT.CROP.TYPE", "absolute",
    "INPUT.CROP.SIZE", (512, 512),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.75,
    "INPUT.RANDOM_FLIP", "horizontal",
    "INPUT.KNET_COLOR_AUG", ["photometric"],
    "INPUT.KNET_TARGETS", ["sem_seg"],
    "INPUT.FORMAT", "RGB",
]  # fmt: skip


def make_cfg(name, *options):
    cfg = get_cfg()
    add_data_config(cfg)
    cfg.DATASETS.TRAIN = (name,)
    cfg.merge_from_list([*RECIPE, *options])
    return cfg


@pytest.fixture
def own(tmp_path):
    """One 64x96 picture: class 0 but for a stripe of class 1 at the right, a fifth of the width."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    labels = np.zeros((64, 96), np.uint8)
    labels[:, 77:] = 1
    labels[:4] = 255
    image = np.random.default_rng(0).integers(60, 200, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    Image.fromarray(labels).save(tmp_path / "labels" / "a.png")
    register_sem_seg(
        "own",
        image_root=tmp_path / "images",
        sem_seg_root=tmp_path / "labels",
        classes=["wall", "door"],
    )
    return DatasetCatalog.get("own")


def test_what_the_config_builds():
    steps = build_knet_augmentation(make_cfg("own"), True)
    names = [type(step).__name__ for step in steps]
    assert names == [
        "ResizeShortestEdge",
        "RandomCrop_CategoryAreaConstraint",
        "RandomFlip",
        "ColorAugSSDTransform",
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_is_stretched_before_anything_else_in_training_and_inference(channels):
    cfg = make_cfg("own")
    cfg.INPUT.CONTRAST_CUTOFF = 10.0
    ramp = np.tile(np.arange(40, 60, dtype=np.uint8)[:, None], (20, 1, 2)).reshape(20, 40, 1)
    image = np.repeat(ramp, channels, axis=2)
    for is_train in (True, False):
        stretch, *rest = build_knet_augmentation(cfg, is_train)
        assert rest
        stretched = stretch.get_transform(image).apply_image(image)
        assert stretched.shape == image.shape and stretched.dtype == np.uint8
        # a tenth of the pixels at either end
        assert (stretched == 0).mean() >= 0.1 and (stretched == 255).mean() >= 0.1
        middle = stretched[(image == 50).all(2)]
        assert abs(middle.astype(int) - 127).max() < 15
    flat = np.full_like(image, 7)
    assert (stretch.get_transform(flat).apply_image(flat) == flat).all()


def test_scales_cover_the_published_range():
    (resize, *_) = build_knet_augmentation(make_cfg("own"), True)
    np.random.seed(0)
    short, ratios = [], []
    for _ in range(400):
        transform = resize.get_transform(np.zeros((50, 100, 3), np.uint8))
        short.append(min(transform.new_h, transform.new_w))
        ratios.append(transform.new_w / transform.new_h)
    assert min(short) >= 256 and max(short) <= 1024
    assert min(short) < 280 and max(short) > 1000 and 600 < np.mean(short) < 680
    np.testing.assert_allclose(ratios, 2, atol=0.01)
    wide = resize.get_transform(np.zeros((10, 100, 3), np.uint8))
    assert wide.new_w <= 4096


def test_crops_and_their_limit(own):
    cfg = make_cfg("own")
    dataset = SeededDataset(own, KNetDatasetMapper(cfg, True), seed=1)
    free = make_cfg("own", "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 1.0)
    unlimited = SeededDataset(own, KNetDatasetMapper(free, True), seed=1)
    shares: dict[str, list[float]] = {"limited": [], "free": []}
    for position in range(24):
        for name, source in (("limited", dataset), ("free", unlimited)):
            result = source[(position, 0)]
            height, width = result["image"].shape[1:]
            assert result["sem_seg"].shape == (height, width)
            assert max(height, width) <= 512 and min(height, width) >= 256
            assert set(result["sem_seg"].unique().tolist()) <= {0, 1, 255}
            assert "instances" not in result
            counts = torch.bincount(result["sem_seg"].flatten(), minlength=256)[:255]
            shares[name].append(float(counts.max() / counts.sum()))
    # Ten draws do not always find a crop that obeys, so most must, and more than without a limit.
    obeyed = {name: np.mean(np.array(values) < 0.75) for name, values in shares.items()}
    assert obeyed["limited"] > 0.5 and obeyed["limited"] > 2 * obeyed["free"], obeyed


def test_small_pictures_keep_the_labels_aligned(own):
    """Flip and colour leave label and picture in step: the marked stripe stays where it is."""
    image = np.array(Image.open(own[0]["file_name"]))
    image[:, 77:], image[:, :77] = 230, 20
    Image.fromarray(image).save(own[0]["file_name"])
    dataset = SeededDataset(own, KNetDatasetMapper(make_cfg("own"), True), seed=0)
    flips = set()
    for position in range(12):
        result = dataset[(position, 0)]
        grey = result["image"].float().mean(0).numpy()
        bright = grey > (grey.min() + grey.max()) / 2
        labels = result["sem_seg"].numpy()
        valid = labels < 255
        columns = np.flatnonzero((labels == 1).any(0))
        if len(columns) and (labels == 0).any():
            assert (bright == (labels == 1))[valid].mean() > 0.97
            flips.add(bool(columns.mean() < labels.shape[1] / 2))
    assert flips == {True, False}


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_photometric_distortion_is_seeded(own, image_format):
    cfg = make_cfg("own", "INPUT.FORMAT", image_format, "INPUT.CROP.ENABLED", False)
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 64)
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = KNetDatasetMapper(cfg, True)
    images = [SeededDataset(own, mapper, seed=3)[(i, 0)]["image"] for i in range(8)]
    again = [SeededDataset(own, mapper, seed=3)[(i, 0)]["image"] for i in range(8)]
    other = [SeededDataset(own, mapper, seed=4)[(i, 0)]["image"] for i in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(images, again))
    assert sum(torch.equal(a, b) for a, b in zip(images, other)) < 3
    assert len({int(image.sum()) for image in images}) > 5
    assert images[0].dtype == torch.uint8


def test_photometric_distortion_of_rgb_and_bgr_is_one():
    """The same draws on the same picture, whatever the order of its channels."""
    import random

    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    for seed in range(10):
        results = []
        for image_format in ("RGB", "BGR"):
            random.seed(seed)
            cfg = make_cfg("own", "INPUT.FORMAT", image_format)
            transform = build_knet_augmentation(cfg, True)[-1]
            pixels = image if image_format == "RGB" else image[..., ::-1]  # a view, as after a flip
            result = T.AugInput(pixels)
            T.AugmentationList([transform])(result)
            results.append(result.image if image_format == "RGB" else result.image[..., ::-1])
        np.testing.assert_array_equal(*results)
    with pytest.raises(ValueError, match=r"needs INPUT\.FORMAT RGB or BGR, not 'L'"):
        build_knet_augmentation(make_cfg("own", "INPUT.FORMAT", "L"), True)


def test_semantic_training_on_panoptic_records(shapes_root):
    register_shapes(shapes_root)
    cfg = make_cfg("shapes_train", "INPUT.CROP.SIZE", (64, 64), "INPUT.MIN_SIZE_TRAIN", (96, 128))
    mapper = KNetDatasetMapper(cfg, True)
    for record in DatasetCatalog.get("shapes_train")[:4]:
        result = mapper(record)
        assert "instances" not in result and result["sem_seg"].shape == (64, 64)
        assert result["sem_seg"].max() < 8


def test_things_after_stuff(tmp_path):
    """Detectron2's Cityscapes: 8 thing classes with the ids 11 to 18, 19 names."""
    cfg = make_cfg("cityscapes_fine_panoptic_train", "INPUT.KNET_TARGETS", [])
    cfg.INPUT.CROP.ENABLED = False
    mapper = KNetDatasetMapper(cfg, True)
    assert (mapper.thing_ids, mapper.num_classes) == (list(range(11, 19)), 19)
    ids = np.full((8, 8), 7, np.uint32)
    ids[:3] = 26001
    write_panoptic_png(str(tmp_path / "pan.png"), ids)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    segments = [
        {"id": 7, "category_id": 0, "isthing": False},
        {"id": 26001, "category_id": 13, "isthing": True},
    ]
    record = {
        "file_name": str(tmp_path / "a.png"),
        "pan_seg_file_name": str(tmp_path / "pan.png"),
        "segments_info": segments,
    }
    result = mapper(record)
    assert result["instances"].gt_classes.tolist() == [13]
    assert set(result["sem_seg"].unique().tolist()) == {0, 13}
    del segments[0]["isthing"], segments[1]["isthing"]
    assert mapper(record)["instances"].gt_classes.tolist() == [13]
    with pytest.raises(ValueError, match=r"pan\.png: segment 7 has no `isthing`"):
        KNetDatasetMapper(True, augmentations=[], image_format="RGB")(record)
    segments[1].update(category_id=3, isthing=True)
    with pytest.raises(ValueError, match=r"pan\.png: instance class 3, but there are 8, 11 to 18"):
        mapper(record)
