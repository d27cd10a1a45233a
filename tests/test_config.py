"""Every shipped config."""

from pathlib import Path

import pytest
import yaml

from knet.config import get_cfg_from_file
from knet.config_file import flat_keys, value_of

# isort: split
from detectron2.config import CfgNode

# Base-Plus.yaml is no config of its own: others add it to theirs
CONFIGS = sorted(p for p in Path("configs").rglob("*.yaml") if p.stem != "Base-Plus")


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_config_loads_and_clips_as_published(path):
    cfg = get_cfg_from_file(str(path))
    assert cfg.MODEL.META_ARCHITECTURE == "KNet"
    assert cfg.SOLVER.CLIP_GRADIENTS.ENABLED
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == "full_model"
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 1.0
    published_semantic = path.parent.name == "semantic" or path.name.startswith(
        ("Base-Semantic", "semantic_scratch")
    )
    assert (0.0005 if published_semantic else 0.05) == cfg.SOLVER.WEIGHT_DECAY


@pytest.mark.parametrize("head", ["fcn", "pspnet", "deeplabv3", "upernet"])
def test_semantic_recipe_is_the_published_one(head):
    cfg = get_cfg_from_file(f"configs/ade20k/semantic/knet_{head}_r50.yaml")
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (80000, (60000, 72000))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER) == (1e-4, 1.0)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR) == (1000, 0.001)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING) == ((256, 1024), "range")
    crop = cfg.INPUT.CROP
    assert (crop.ENABLED, tuple(crop.SIZE), crop.SINGLE_CATEGORY_MAX_AREA) == (
        True,
        (512, 512),
        0.75,
    )
    assert cfg.INPUT.KNET_COLOR_AUG == ["photometric"]
    knet = cfg.MODEL.KNET
    assert (knet.SEMANTIC.DROPOUT, knet.LOSS.AUX_WEIGHT, knet.LOSS.SEG_WEIGHT) == (0.1, 0.4, 1.0)
    assert cfg.MODEL.RESNETS.NORM == knet.SEMANTIC.NORM == "SyncBN"
    assert ((256, -1) if head == "upernet" else (512, 256)) == (knet.HIDDEN_DIM, knet.UPDATER_DIM)
    assert (32 if head == "upernet" else 8) == cfg.MODEL.RESNET_V1C.OUTPUT_STRIDE


@pytest.mark.parametrize("task, images", [("panoptic", 118_287), ("instance", 117_266)])
@pytest.mark.parametrize("schedule, epochs, drops", [("1x", 12, (8, 11)), ("3x", 36, (27, 33))])
def test_schedules_are_the_published_epochs(task, images, schedule, epochs, drops):
    cfg = get_cfg_from_file(f"configs/coco/{task}/knet_r50_fpn_{schedule}.yaml")
    steps_an_epoch = images / cfg.SOLVER.IMS_PER_BATCH
    assert pytest.approx(steps_an_epoch * epochs, abs=2) == cfg.SOLVER.MAX_ITER
    assert pytest.approx([steps_an_epoch * d for d in drops], abs=2) == cfg.SOLVER.STEPS
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER) == (1e-4, 0.25)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR) == (1000, 0.001)
    assert ((800,) if schedule == "1x" else (640, 800)) == cfg.INPUT.MIN_SIZE_TRAIN
    assert (cfg.MODEL.KNET.LOSS.RANK_WEIGHT == 0.1) == (task == "panoptic")
    assert (cfg.MODEL.KNET.NUM_KERNELS, cfg.MODEL.KNET.NUM_ROUNDS) == (100, 3)


def test_swin_recipes_are_the_published_ones():
    rates = {"swin_t": 0.3, "swin_l": 0.3, "swin_l_640": 0.4}
    for name, rate in rates.items():
        cfg = get_cfg_from_file(f"configs/ade20k/semantic/knet_upernet_{name}.yaml")
        assert (cfg.SOLVER.BASE_LR, rate) == (6e-5, cfg.MODEL.SWIN.DROP_PATH_RATE)
    assert (tuple(cfg.INPUT.CROP.SIZE), cfg.INPUT.MIN_SIZE_TEST) == ((640, 640), 640)
    cfg = get_cfg_from_file("configs/coco/panoptic/knet_swin_l_fpn_3x.yaml")
    assert pytest.approx(118_287 / 32 * 36, abs=2) == cfg.SOLVER.MAX_ITER
    assert pytest.approx([118_287 / 32 * d for d in (27, 33)], abs=2) == cfg.SOLVER.STEPS
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.SWIN.DROP_PATH_RATE) == (32, 0.2)
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0


PUBLISHED = [
    p for p in CONFIGS if p.parts[1] in ("coco", "ade20k") and "coco/semantic" not in p.as_posix()
]


@pytest.mark.parametrize("path", [p for p in PUBLISHED if p.stem.endswith("_1gpu")], ids=str)
def test_one_gpu_variants_scale_the_original(path):
    from detectron2.engine import DefaultTrainer

    original = get_cfg_from_file(str(path).replace("_1gpu", ""))
    cfg = DefaultTrainer.auto_scale_workers(get_cfg_from_file(str(path)), 1)
    factor = 16 if "swin_l_fpn" in path.name else 8
    assert factor * cfg.SOLVER.IMS_PER_BATCH == original.SOLVER.IMS_PER_BATCH
    assert pytest.approx(original.SOLVER.BASE_LR / factor) == cfg.SOLVER.BASE_LR
    assert factor * original.SOLVER.MAX_ITER == cfg.SOLVER.MAX_ITER
    assert tuple(factor * s for s in original.SOLVER.STEPS) == cfg.SOLVER.STEPS
    assert original.MODEL == cfg.MODEL


def test_every_published_model_has_both_variants():
    names = {str(p) for p in PUBLISHED}
    assert len(names) == 32
    assert all(n.replace("_1gpu", "").replace(".yaml", "_1gpu.yaml") in names for n in names)


@pytest.mark.parametrize(
    "name, base",
    [("coco_panoptic_r50", "coco/panoptic/knet_r50_fpn_3x"),
     ("coco_instance_r50", "coco/instance/knet_r50_fpn_3x"),
     ("coco_panoptic_swin_l", "coco/panoptic/knet_swin_l_fpn_3x")],
)  # fmt: skip
def test_recommended_recipes_are_the_published_ones_and_what_stands_in_one_file(name, base):
    path = Path(f"configs/plus/{name}.yaml")
    assert "Nothing of it has been trained on COCO" in path.read_text()
    ours, theirs = get_cfg_from_file(str(path)), get_cfg_from_file(f"configs/{base}.yaml")
    added = CfgNode(yaml.safe_load(Path("configs/Base-Plus.yaml").read_text()))
    differ = {key for key in flat_keys(ours) if value_of(ours, key) != value_of(theirs, key)}
    assert differ == {*flat_keys(added), "OUTPUT_DIR"}
    assert all(value_of(ours, key) == value_of(added, key) for key in flat_keys(added))


def test_a_config_runs_no_code(tmp_path):
    trace = tmp_path / "it_ran"
    path = tmp_path / "evil.yaml"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{trace}']\n")
    with pytest.raises(Exception, match="could not determine a constructor"):
        get_cfg_from_file(str(path))
    assert not trace.exists()


def test_flags_behind_the_keys_are_named():
    for words, message in (
        ("MODEL.WEIGHTS x --output y", "--output stands behind the config keys.*before MODEL.W"),
        ("MODEL.WEIGHTS x --resume", "--resume stands behind the config keys"),
        ("MODEL.WEIGHTS x -h", "-h stands behind"),
        ("--eval-only", "--eval-only stands behind"),
        ("SEED 1 MODEL.WEIGHTS", "the config key MODEL.WEIGHTS has no value"),
        ("MODEL.PIXEL_MEAN [1, 2]", r"'2\]' stands where a config key must \(after MODEL.PIX"),
    ):
        with pytest.raises(ValueError, match=message):
            get_cfg_from_file(str(CONFIGS[0]), words.split())
    assert get_cfg_from_file(str(CONFIGS[0]), ["SEED", "-5"]).SEED == -5
