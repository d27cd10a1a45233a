"""Scales are drawn from the range, and labels follow the picture onto the padded frame."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from knet.config import get_cfg_from_file
from knet.data import KNetDatasetMapper, build_knet_augmentation, write_panoptic_png
from knet.data.augmentation import largest_train_sides
from knet.data.jitter import Padding, ScaleJitter
from knet.data.loader import seed_everything

MEAN = [10.4, 300.0, 7.6]
JITTER = ["INPUT.SCALE_JITTER", (0.1, 2.0), "INPUT.CROP.ENABLED", True,
          "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", (48, 64)]  # fmt: skip


def make_cfg(*options):
    options = ["MODEL.PIXEL_MEAN", [100.0] * 3, "INPUT.KNET_COLOR_AUG", [], *JITTER, *options]
    return get_cfg_from_file("configs/shapes/panoptic.yaml", options)


@pytest.mark.parametrize("size, fit", [((30, 20), (480, 320)), ((30, 90), (213, 640))])
def test_scales_are_those_that_fit_the_frame_times_a_factor_of_the_range(size, fit):
    image = np.zeros((*size, 3), np.uint8)
    exact = ScaleJitter((1.0, 1.0), (480, 640)).get_transform(image)
    assert (exact.new_h, exact.new_w) == fit
    np.random.seed(0)
    jitter = ScaleJitter((0.1, 2.0), (480, 640))
    drawn = [jitter.get_transform(image) for _ in range(500)]
    factors = np.array([t.new_h / fit[0] for t in drawn])
    assert 0.095 < factors.min() < 0.12 and 1.98 < factors.max() < 2.01
    assert 1.0 < factors.mean() < 1.1  # evenly: 1.05
    ratios = [t.new_w / t.new_h for t in drawn]
    np.testing.assert_allclose(ratios, size[1] / size[0], rtol=0.03)


def test_no_side_vanishes():
    flat = np.zeros((2, 2000, 3), np.uint8)
    transform = ScaleJitter((0.1, 0.1), (64, 64)).get_transform(flat)
    assert (transform.new_h, transform.new_w) == (1, 6)


def records(tmp_path):
    """A 2x3 picture with a thing (class 1) at the left, void below it, and stuff: panoptic,
    semantic and instance labels of it."""
    pixels = np.full((2, 3, 3), 50, np.uint8)
    pixels[:, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    ids = np.array([[7, 9, 9], [0, 9, 9]], np.uint32)
    write_panoptic_png(str(tmp_path / "pan.png"), ids)
    Image.fromarray(np.array([[1, 3, 3], [255, 3, 3]], np.uint8)).save(tmp_path / "sem.png")
    record = {"file_name": str(tmp_path / "a.png")}
    mask = (ids == 7).astype(np.uint8)
    segments = [{"id": 7, "category_id": 1, "isthing": True, "iscrowd": 0},
                {"id": 9, "category_id": 3, "isthing": False, "iscrowd": 0}]  # fmt: skip
    annotation = {"category_id": 1, "iscrowd": 0, "segmentation": mask}
    return {
        "panoptic": {**record, "pan_seg_file_name": str(tmp_path / "pan.png"),
                     "segments_info": segments},
        "semantic": {**record, "sem_seg_file_name": str(tmp_path / "sem.png")},
        "instances": {**record, "annotations": [annotation]},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["panoptic", "semantic", "instances"])
def test_labels_by_hand(tmp_path, kind):
    """2x3 on a frame of 6x9, times 2/3, is 4x6, then padded to 5x9."""
    mapper = KNetDatasetMapper(
        True,
        augmentations=[ScaleJitter((2 / 3, 2 / 3), (6, 9))],
        image_format="RGB",
        padding=Padding((5, 9), MEAN),
    )
    result = mapper(records(tmp_path)[kind])
    assert result["image"].shape == (3, 5, 9) and result["image"].dtype == torch.uint8
    assert (result["height"], result["width"]) == (2, 3)
    assert (result["image"][:, 4:] == torch.tensor([10, 255, 8])[:, None, None]).all()
    assert (result["image"][:, :, 6:] == torch.tensor([10, 255, 8])[:, None, None]).all()
    assert (result["image"][:, :4, 0] == 200).all() and (result["image"][:, :4, 5] == 50).all()
    if kind != "instances":
        expected = torch.tensor([
            [1, 1, 3, 3, 3, 3, 255, 255, 255],
            [1, 1, 3, 3, 3, 3, 255, 255, 255],
            [255, 255, 3, 3, 3, 3, 255, 255, 255],
            [255, 255, 3, 3, 3, 3, 255, 255, 255],
            [255, 255, 255, 255, 255, 255, 255, 255, 255],
        ])  # fmt: skip
        assert torch.equal(result["sem_seg"], expected)
    if kind != "semantic":
        mask = torch.zeros(1, 5, 9, dtype=torch.bool)
        mask[0, :2, :2] = True
        assert torch.equal(result["instances"].gt_masks.tensor, mask)
        assert result["instances"].image_size == (5, 9)
        assert result["instances"].gt_classes.tolist() == [1]


def test_what_fills_the_frame_is_not_padded():
    sample = {"image": torch.zeros(3, 5, 7, dtype=torch.uint8)}
    assert Padding((4, 7), MEAN)(sample) is sample
    assert Padding((6, 6), MEAN)(sample)["image"].shape == (3, 6, 7)


def test_pictures_without_objects_are_padded(tmp_path):
    mapper = KNetDatasetMapper(
        True, augmentations=[], image_format="RGB", padding=Padding((4, 5), MEAN)
    )
    masks = mapper({**records(tmp_path)["instances"], "annotations": []})["instances"].gt_masks
    assert masks.tensor.shape == (0, 4, 5) and masks.tensor.dtype == torch.bool


@pytest.mark.parametrize("limit", [1.0, 0.75])
def test_the_config_makes_training_pictures_of_one_size(tiny_shapes, limit):
    cfg = make_cfg("DATASETS.TRAIN", ("tiny_train",), "INPUT.RANDOM_FLIP", "horizontal",
                   "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", limit)  # fmt: skip
    mapper = KNetDatasetMapper(cfg, True)
    shares = []
    for position, record in enumerate(DatasetCatalog.get("tiny_train")):
        seed_everything(5, position)
        result = mapper(record)
        assert result["image"].shape == (3, 48, 64) and result["sem_seg"].shape == (48, 64)
        outside = result["sem_seg"] == 255  # scenes have no void
        assert (result["image"][:, outside] == 100).all()
        masks, classes = result["instances"].gt_masks.tensor, result["instances"].gt_classes
        assert not (masks & outside).any() and masks.flatten(1).any(1).all()
        assert all((result["sem_seg"][mask] == label).all() for mask, label in zip(masks, classes))
        # padding is at the right and below, flipped or not
        assert not outside[0, 0] and (outside == outside[0] | outside[:, :1]).all()
        shares.append(float(outside.float().mean()))
    assert min(shares) == 0 and max(shares) > 0.7
    assert KNetDatasetMapper(cfg, False).padding is None


def test_without_the_key_nothing_is_padded_and_sizes_are_the_old_ones():
    cfg = make_cfg("INPUT.SCALE_JITTER", (), "DATASETS.TRAIN", ())
    assert KNetDatasetMapper(cfg, True).padding is None
    assert not any(isinstance(step, ScaleJitter) for step in build_knet_augmentation(cfg, True))


def test_reduced_pictures_are_as_large_as_jitter_asks_for():
    assert largest_train_sides(make_cfg()) == (128, 128)
    assert largest_train_sides(make_cfg("INPUT.SCALE_JITTER", (0.3, 0.99))) == (64, 64)
    cfg = make_cfg("INPUT.SCALE_JITTER", (), "INPUT.MIN_SIZE_TRAIN", (7, 9))
    assert largest_train_sides(cfg) == (9, cfg.INPUT.MAX_SIZE_TRAIN)
    jitter = ScaleJitter((2.0, 2.0), (48, 64))
    for size in ((300, 500), (500, 300), (480, 640), (90, 400)):
        transform = jitter.get_transform(np.zeros((*size, 3), np.uint8))
        assert max(transform.new_h, transform.new_w) <= 128


@pytest.mark.parametrize("options, text", [
    (["INPUT.SCALE_JITTER", (2.0, 0.1)], r"SCALE_JITTER is \[2\.0, 0\.1\]; it must be \(least"),
    (["INPUT.SCALE_JITTER", (0.0, 1.0)], r"SCALE_JITTER .*2 values, each a number above 0"),
    (["INPUT.SCALE_JITTER", (1.0,)], r"SCALE_JITTER .*2 values.*or empty"),
    (["INPUT.CROP.ENABLED", False], r"CROP\.ENABLED is False; with INPUT\.SCALE_JITTER it must"),
    (["INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", (0.5, 0.5)],
     r"CROP\.TYPE is 'relative'; with INPUT\.SCALE_JITTER it must be 'absolute'"),
])  # fmt: skip
def test_what_does_not_go_with_it_is_named(options, text):
    with pytest.raises(ValueError, match=text):
        make_cfg(*options)
