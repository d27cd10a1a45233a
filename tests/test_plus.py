"""The recommended recipes, made small, and all ideas at once: training, export, published weights.

Every idea that they have stays on.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.class_names import ClassNames
from knet.checkpoint.published_names import export_published
from knet.config import get_cfg_from_file
from knet.data.custom import register_custom
from knet.export.lowering import exportable_copy
from knet.modeling import training_kernels
from knet.training.optimizer import build_optimizer
from knet.training.trainer import Trainer

from .export.models import spread_weights
from .processes import call_in_two
from .training.output_files import difference
from .training.two_processes import compare, distributed_steps, write_sparse

FILES = sorted(path.stem for path in Path("configs/plus").glob("*.yaml"))
_SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.TIMM.PRETRAINED", False,
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.FPN.OUT_CHANNELS", 16,
    "MODEL.SWIN.EMBED_DIM", 8, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1],
    "MODEL.SWIN.NUM_HEADS", [1, 1, 2, 2], "MODEL.SMALL_RESNET.CHANNELS", [16, 32, 48, 64],
    "MODEL.KNET.HIDDEN_DIM", 16, "MODEL.KNET.FFN_DIM", 32, "MODEL.KNET.NORM_GROUPS", 4,
    "MODEL.KNET.NUM_HEADS", 4, "MODEL.KNET.NUM_KERNELS", 12,
    "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice",
    "INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0,
    "SOLVER.IMS_PER_BATCH", 2, "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 1e-4,
    "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", (), "SEED", 5,
]  # fmt: skip
_ALL = [
    "MODEL.KNET.GROUPING", "exclusive", "MODEL.KNET.ROUND_LEVELS", ["res5", "res4"],
    "MODEL.KNET.ROUND_REPEATS", 2, "MODEL.KNET.NUM_ROUNDS", 1, "MODEL.KNET.NECK",
    "build_bifpn_neck", "MODEL.KNET.MASK_LEVEL", 0, "MODEL.KNET.MASK_UPSAMPLE", 1,
    "MODEL.KNET.KERNEL_PEAKS", True, "MODEL.KNET.RESIDUAL_MASKS", True,
    "MODEL.KNET.MASK_PILOTS", 2, "MODEL.KNET.ONE_TO_MANY", 2, "MODEL.KNET.LOSS.NUM_POINTS", 60,
    "MODEL.KNET.TEST.MASK_SCORES", True,
    "MODEL.KNET.TEST.PANOPTIC_MASK_SCORES", 2.0, "SOLVER.EMA", 0.99, "INPUT.CROP.ENABLED", True,
    "INPUT.CROP.TYPE", "absolute", "INPUT.SCALE_JITTER", (0.5, 2.0), "INPUT.COPY_PASTE", 0.5,
]  # fmt: skip


def small(name, shapes=None, *, sparse=None, config=None, ideas=()):
    """A recipe of configs/plus, or all ideas, made small.

    Args:
        name: of its file, or "all".
        shapes: folder of the scenes that a panoptic one trains on; None for a model without data.
        sparse: folder of other annotations, see `write_sparse`.
        config: another config file.
        ideas: further keys and values.
    """
    file = "shapes_panoptic" if name == "all" else name
    cfg = get_cfg_from_file(config or f"configs/plus/{file}.yaml")
    cfg.merge_from_list([*_SMALL, *(_ALL if name == "all" else []), *ideas])
    knet, data = cfg.MODEL.KNET, cfg.DATASETS
    if knet.LOSS.NUM_POINTS:
        knet.LOSS.NUM_POINTS = 60
    if knet.KERNEL_PEAKS:
        knet.TEST.NUM_KERNELS = 18
    if cfg.INPUT.CROP.ENABLED:
        cfg.INPUT.CROP.SIZE = (64, 64)
    if "timm_vit" in cfg.MODEL.BACKBONE.NAME:
        cfg.MODEL.TIMM.KWARGS.update({"depth": 1, "embed_dim": 16, "num_heads": 2})
    data.TRAIN, data.TEST, data.CUSTOM = (), (), []
    if shapes is None:
        knet.NUM_THING_CLASSES, knet.NUM_STUFF_CLASSES = 4, 4 if knet.TEST.PANOPTIC_ON else 0
        return cfg
    folder = shapes / "train"
    entry = {
        "NAME": f"plus_{name}", "FORMAT": "coco_panoptic", "IMAGE_ROOT": str(folder / "images"),
        "PANOPTIC_ROOT": str(sparse / "sparse" if sparse else folder / "panoptic"),
        "PANOPTIC_JSON": str(sparse / "sparse.json" if sparse else folder / "panoptic.json"),
    }  # fmt: skip
    data.CUSTOM, data.TRAIN = [entry], (entry["NAME"],)
    register_custom(cfg)
    return cfg


ALL = [*FILES, "all"]
# the other recipes differ from the first in their backbone, or have of "all" some
TRAINED = ["shapes_panoptic", "all"]


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_has_a_gradient_without_any_object(name):
    cfg = small(name)
    model = build_model(cfg).train()
    build_optimizer(
        cfg, model
    )  # which every pattern of SOLVER.NO_DECAY must find its parameters in
    nothing = Instances((64, 64), gt_masks=BitMasks(torch.zeros(0, 64, 64, dtype=torch.bool)))
    nothing.gt_classes = torch.zeros(0, dtype=torch.int64)
    image = torch.rand(3, 64, 64) * 255
    x = {"image": image, "instances": nothing, "sem_seg": torch.full((64, 64), 255)}
    losses = model([x, x])
    assert any(key.startswith("loss_pilot_") for key in losses) == bool(cfg.MODEL.KNET.MASK_PILOTS)
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key


def _without_chance(jobs, folder):
    """What is drawn, differs by process: errors of pilots, points, left out branches."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for constant in ("_SHIFT", "_STRETCH", "_WRONG_PIXELS", "_WRONG_CLASS"):
            patch.setattr(training_kernels, constant, 0.0)
        for name, cfg in jobs:
            register_custom(cfg)
            distributed_steps(cfg, folder / f"{name}.pth", count=2)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tiny_shapes, tmp_path):
    """Of the two images of a step one has no object, so that a process has none.

    What pilots see of one another depends on how many an image of their process has, and only here
    not on the number of processes.
    """
    write_sparse(tiny_shapes, tmp_path)
    jobs = []
    for name in TRAINED:
        cfg = small(name, tiny_shapes, sparse=tmp_path)
        cfg.merge_from_list(
            ["MODEL.KNET.FREEZE_NORM_STATS", True, "MODEL.KNET.LOSS.NUM_POINTS", 0,
             "INPUT.COPY_PASTE", 0.0, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False,
             "MODEL.WEIGHTS", str(tmp_path / f"{name}_initial.pth")]
        )  # fmt: skip
        torch.save({"model": Trainer.build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
        jobs.append((name, cfg))
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
    _without_chance(jobs, tmp_path / "1")
    call_in_two(_without_chance, jobs, tmp_path / "2")
    for name, cfg in jobs:
        one, two = (
            torch.load(tmp_path / str(n) / f"{name}.pth", weights_only=True) for n in (1, 2)
        )
        if cfg.MODEL.KNET.MASK_PILOTS:
            assert one["losses"][0]["loss_pilot_round1_dice"] > 0
        compare(name, one, two)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_resumed_equals_uninterrupted(name, tiny_shapes, tmp_path):
    cfg = small(name, tiny_shapes)
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    assert cfg.SOLVER.EMA

    def trainer(folder, *, resume=False):
        cfg.OUTPUT_DIR = str(tmp_path / folder)
        torch.manual_seed(0)
        made = Trainer(cfg)
        made.resume_or_load(resume=resume)
        return made

    def interrupted():
        if first.iter == 2:
            raise ZeroDivisionError
        run_step()

    trainer("whole").train()
    first = trainer("parts")
    run_step, first._trainer.run_step = first._trainer.run_step, interrupted
    with pytest.raises(ZeroDivisionError):
        first.train()
    torch.manual_seed(99)  # whatever happened in between
    second = trainer("parts", resume=True)
    assert second.start_iter == 2
    second.train()
    whole, parts = (
        torch.load(tmp_path / folder / "model_final.pth", weights_only=False)
        for folder in ("whole", "parts")
    )
    for part in ("model", "trained"):
        assert difference(whole[part], parts[part]) == ""
    assert difference(whole["trainer"]["_trainer"], parts["trainer"]["_trainer"]) == ""


@pytest.mark.parametrize("name", ALL)
def test_what_only_training_has_is_not_exported(name):
    cfg = small(name)
    model = build_model(cfg).eval()
    copied = exportable_copy(model.heads, "heads", onnx=True)
    ours, theirs = ({n for n, _ in heads.named_parameters()} for heads in (model.heads, copied))
    assert {n.split(".")[0] for n in ours - theirs} <= {"training_kernels"}
    assert bool(ours - theirs) == any(cfg.MODEL.KNET[k] for k in ("MASK_PILOTS", "ONE_TO_MANY"))
    assert theirs and not any("training_kernels" in n for n in theirs)


PUBLISHED = {
    "coco_instance_r50": "configs/coco/instance/knet_r50_fpn_3x.yaml",
    "coco_panoptic_r50": "configs/coco/panoptic/knet_r50_fpn_3x.yaml",
    "coco_panoptic_swin_l": "configs/coco/panoptic/knet_swin_l_fpn_3x.yaml",
}


def results(model):
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        (found,) = model.eval()([{"image": image, "height": 64, "width": 96}])
    instances = found["instances"]
    rest = [found["sem_seg"], found["panoptic_seg"][0]] if "sem_seg" in found else []
    return [instances.scores, instances.pred_classes, instances.pred_masks, *rest]


def adapted(cfg, path, caplog):
    """A model with the weights of a file, what it was before, and what was said."""
    model = build_model(cfg)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    caplog.clear()
    classes = ClassNames(tuple("abcdefgh")[: model.criterion.num_classes], 4)
    with caplog.at_level(logging.INFO, "knet"):
        KNetCheckpointer(model, finetune="adapt", classes=classes).load(str(path))
    return model, fresh, caplog.records[-1].getMessage()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_start_the_recipes(name, tmp_path, caplog):
    published = small(name, config=PUBLISHED[name])
    old = build_model(published)
    spread_weights(old, 4.0)
    names = tuple("abcdefgh")[: 8 if "panoptic" in name else 4]
    state = export_published(old.state_dict())
    torch.save({"meta": {"CLASSES": names}, "state_dict": state}, tmp_path / "old.pth")
    expected = results(old)
    assert expected[2].any() and expected[0].std() > 0.01
    same, _, said = adapted(published, tmp_path / "old.pth", caplog)
    assert "that the model lacks" not in said and "freshly" not in said
    assert all(map(torch.equal, results(same), expected))

    cfg = small(name, ideas=["MODEL.KNET.GROUPING", "hard"])  # as published, for equal results
    new, fresh, said = adapted(cfg, tmp_path / "old.pth", caplog)
    for key, value in new.state_dict().items():
        theirs = fresh if key.startswith("heads.training_kernels.") else old.state_dict()
        assert torch.equal(value, theirs[key]), key
    assert "that the model lacks" not in said
    only_training = any(key.startswith("heads.training_kernels.") for key in fresh)
    if only_training:
        assert said.endswith("; freshly initialised: 1 (heads.training_kernels)")
    else:
        assert "freshly" not in said
    new.task = same.task  # scores as published
    assert all(map(torch.equal, results(new), expected))


def test_published_weights_start_all_ideas_as_far_as_they_go(tmp_path, caplog):
    old = build_model(small("", config=PUBLISHED["coco_panoptic_r50"]))
    state = export_published(old.state_dict())
    torch.save({"meta": {"CLASSES": tuple("abcdefgh")}, "state_dict": state}, tmp_path / "old.pth")
    levels = ["MODEL.KNET.ROUND_LEVELS", ["p5", "p4"], "MODEL.KNET.NUM_ROUNDS", 3]
    cfg = small("coco_panoptic_r50", ideas=[*_ALL, *levels])
    new, fresh, said = adapted(cfg, tmp_path / "old.pth", caplog)
    before, after = old.state_dict(), new.state_dict()
    for name, value in after.items():
        assert torch.equal(value, before.get(name, fresh[name])), name

    missing, surplus = after.keys() - before.keys(), before.keys() - after.keys()

    def parts(names):
        names = (re.sub(r"rounds\.\d+", "rounds", name) for name in names)
        return {".".join(name.split(".")[:3]) for name in names}

    assert parts(missing) == {
        "heads.neck.laterals", "heads.neck.layers", "heads.kernel_head.peaks",
        "heads.rounds.level_transform", "heads.training_kernels.pilots",
        "heads.training_kernels.many",
    }  # fmt: skip
    assert parts(surplus) == {"heads.neck.levels", "heads.kernel_head.init_kernels"}
    assert f"left out: {len(surplus)} that the model lacks (heads.neck, heads.kernel_head)" in said
    assert f"freshly initialised: {len(missing)} (heads.neck, heads.kernel_head, heads.r" in said
