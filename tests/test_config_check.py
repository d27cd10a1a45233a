"""Values that cannot work are refused when the config is read, and when a model is built of it."""

import random
import re

import pytest
import torch
from detectron2.modeling import build_model

from knet.config import get_cfg_from_file
from knet.config_check import _RULES, check_config
from knet.config_file import flat_keys
from knet.training.optimizer import build_lr_scheduler

PANOPTIC = "configs/shapes/panoptic.yaml"


@pytest.mark.parametrize("key, value, allowed", [
    ("MODEL.KNET.CLASS_PRIOR", -0.1, "above 0 and below 1"),
    ("MODEL.KNET.COST.MASK_WEIGHT", float("nan"), "at least 0"),
    ("MODEL.KNET.LOSS.DICE_WEIGHT", -1.0, "at least 0"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", -1.0, "above 0"),
    ("SOLVER.EMA", 1.0, "below 1"),
    ("TEST.BEST_METRIC", "AP", "task/score"),
    ("TEST.PATIENCE", -1, "at least 0"),
    ("TRACKING.WRITERS", ["tensorboard"], "'wandb', 'mlflow'"),
    ("MODEL.PIXEL_STD", [float("inf")] * 3, "above 0"),
    ("MODEL.PIXEL_STD", [0.0] * 3, "above 0"),
    ("MODEL.KNET.NUM_KERNELS", -1, "at least 0"),
    ("MODEL.KNET.NUM_ROUNDS", 0, "at least 1"),
    ("MODEL.KNET.MASK_UPSAMPLE", 0, "at least 1"),
    ("MODEL.KNET.SIZE_DIVISIBILITY", 0, "at least 1"),
    ("MODEL.KNET.MIN_TRAIN_SIZE", (-1, 5), "2 values"),
    ("MODEL.KNET.IN_FEATURES", [], "at least 1"),
    ("MODEL.KNET.IN_FEATURES", ["p2"], "two or more"),
    ("MODEL.KNET.TEST.MASK_THRESH", 1.5, "at most 1"),
    ("MODEL.KNET.TEST.WINDOW.SIZE", (8,), "2 values"),
    ("MODEL.KNET.TEST.WINDOW.SIZE", (0, 8), "at least 1"),
    ("MODEL.KNET.TEST.WINDOW.STRIDE", (8,), "2 values"),
    ("MODEL.KNET.TEST.WINDOW.BATCH_SIZE", 0, "at least 1"),
    ("MODEL.KNET.NUM_HEADS", 3, "must divide MODEL.KNET.HIDDEN_DIM"),
    ("MODEL.KNET.NORM_GROUPS", 5, "must divide MODEL.KNET.HIDDEN_DIM"),
    ("MODEL.KNET.UPDATER_DIM", 48, "must divide MODEL.KNET.HIDDEN_DIM"),
    ("MODEL.KNET.LOSS.NUM_POINTS", -3, "at least 0"),
    ("MODEL.KNET.ACCEL.RECOMPUTE", ("neck",), "'backbone', 'rounds', 'losses'"),
    ("MODEL.KNET.SEMANTIC.NORM", "XN", "'SyncBN'"),
    ("MODEL.RESNETS.DEPTH", 51, "50, 101"),
    ("MODEL.RESNET_V1C.OUTPUT_STRIDE", 4, "8, 16, 32"),
    ("MODEL.SWIN.NUM_HEADS", [0, 1, 1, 1], "4 values"),
    ("MODEL.META_ARCHITECTURE", "KNett", "KNet"),
    ("MODEL.DEVICE", "gpu", "cpu, cuda"),
    ("SOLVER.MAX_ITER", 0, "at least 1"),
    ("SOLVER.IMS_PER_BATCH", 0, "at least 1"),
    ("SOLVER.BASE_LR", -1.0, "above 0"),
    ("SOLVER.STEPS", (5, 3), "must rise"),
    ("SOLVER.CHECKPOINT_PERIOD", 0, "at least 1"),
    ("SOLVER.CHECKPOINT_MINUTES", -1.0, "at least 0"),
    ("SOLVER.CHECKPOINT_MINUTES", float("nan"), "at least 0"),
    ("SOLVER.AMP.DTYPE", "float8", "'auto', 'bfloat16', 'float16'"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", "full_model"),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 1.0, "2.0"),
    ("SOLVER.LR_SCHEDULER_NAME", "Cosine", "'WarmupCosineLR'"),
    ("INPUT.CROP.SIZE", [0, 0], "2 values"),
    ("INPUT.MIN_SIZE_TRAIN", (), "at least 1"),
    ("TEST.DETECTIONS_PER_IMAGE", 0, "at least 1"),
])  # fmt: skip
def test_what_cannot_work_is_named_with_what_can(key, value, allowed):
    with pytest.raises(ValueError) as error:
        get_cfg_from_file(PANOPTIC, [key, value])
    text = str(error.value)
    assert text.startswith(f"{PANOPTIC}: ") and key in text and allowed in text


def test_every_schedule_that_is_offered_is_there(tiny_cfg):
    names = re.findall(r"'(\w+)'", _RULES["SOLVER.LR_SCHEDULER_NAME"].text)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    for name in names:
        tiny_cfg.SOLVER.LR_SCHEDULER_NAME = name
        build_lr_scheduler(tiny_cfg, optimizer)
    assert {"WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR"} <= set(names)


def test_gradients_that_are_not_clipped_have_no_kind():
    off = ["SOLVER.CLIP_GRADIENTS.ENABLED", False]
    get_cfg_from_file(PANOPTIC, [*off, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"])


def test_all_problems_come_at_once_and_also_by_hand(tiny_cfg):
    tiny_cfg.SOLVER.MAX_ITER, tiny_cfg.MODEL.KNET.NUM_HEADS = 0, 0
    with pytest.raises(ValueError, match=r"NUM_HEADS is 0; .*; SOLVER\.MAX_ITER is 0; "):
        build_model(tiny_cfg)


def test_no_rule_is_for_a_key_that_does_not_exist():
    cfg = get_cfg_from_file(PANOPTIC)
    names = set(flat_keys(cfg))
    unknown = {key for key in _RULES if "*" not in key} - names
    assert unknown <= {"SOLVER.BASE_LR_END", "SOLVER.NUM_DECAYS"}  # of newer Detectron2


@pytest.mark.parametrize("base", [PANOPTIC, "configs/shapes/semantic.yaml"])
def test_values_out_of_range_do_not_reach_the_model(base):
    """Seeded: a model builds, or the message names the key that was changed."""
    rng = random.Random(12)
    cfg = get_cfg_from_file(
        base,
        ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (), "DATASETS.TEST", (), "MODEL.KNET.FFN_DIM", 16]
        + ["MODEL.KNET.NUM_THING_CLASSES", 0 if "semantic" in base else 2]
        + ["MODEL.KNET.NUM_STUFF_CLASSES", 3],
    )
    sections = ("MODEL.KNET.", "MODEL.SMALL_RESNET.", "MODEL.PIXEL", "MODEL.BACKBONE.")
    keys = [key for key in flat_keys(cfg) if key.startswith(sections)]
    numbers = [-1, 0, 1, 3, 7, 2**40, -0.5, 0.5, 1.5, float("nan"), float("inf")]
    refused = 0
    for _ in range(60):
        key = rng.choice(keys)
        changed = cfg.clone()
        *path, last = key.split(".")
        section = changed
        for name in path:
            section = section[name]
        old = section[last]
        if isinstance(old, (list, tuple)):
            section[last] = type(old)([rng.choice(numbers)] * rng.randint(0, 4))
        elif not isinstance(old, bool):
            section[last] = rng.choice([n for n in [*numbers, "x"] if isinstance(n, type(old))])
        try:
            check_config(changed)
            build_model(changed)
        except ValueError as error:
            refused += 1
            # what a map of the backbone has is named by the map
            of_map = key.endswith(("_STRIDE", "SMALL_RESNET.CHANNELS")) and key not in str(error)
            named = "MODEL.KNET.IN_FEATURES" if of_map else key
            assert named in str(error), (key, section[last], error)
    assert refused > 15
