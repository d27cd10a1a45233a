"""Which values keys of a config can have. Deeper code relies on them.

A key that is not in the table has no limits, or ones that its own code checks by name: those of
data sets, augmentations and single backbones.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from knet.config_file import flat_keys, shown, value_of
from knet.data.images import FORMATS
from knet.modeling.semantic import PIXEL_DECODERS


class Rule(NamedTuple):
    """What a value must be, in words and as a test."""

    text: str
    holds: Callable[[Any], bool]


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    """Finite; from `low`, or `above` it, to `high`."""
    low_text = f"a number above {low:g}" if above else f"a number of at least {low:g}"
    text = low_text + ("" if high == math.inf else f" and at most {high:g}")

    def holds(v: Any) -> bool:
        plain = isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
        return plain and low <= v <= high and not (above and v == low)

    return Rule(text, holds)


def _whole(low: int, high: int = 2**31 - 1) -> Rule:
    text = f"a whole number of at least {low}" + ("" if high == 2**31 - 1 else f", at most {high}")
    return Rule(text, lambda v: type(v) is int and low <= v <= high)


def _choice(*values: Any) -> Rule:
    return Rule(
        "one of " + ", ".join(map(repr, values)), lambda v: any(v is c or v == c for c in values)
    )


def _list(each: Rule, *, count: int | None = None, least: int = 0) -> Rule:
    if count is not None:
        text = f"{count} values, each {each.text}"
    else:
        text = ("a list" if least == 0 else f"a list of at least {least}") + f", each {each.text}"

    def holds(v: Any) -> bool:
        if not isinstance(v, (list, tuple)) or not all(map(each.holds, v)):
            return False
        return len(v) == count if count is not None else len(v) >= least

    return Rule(text, holds)


def _or_empty(rule: Rule) -> Rule:
    return Rule(f"{rule.text}, or empty", lambda v: v in ((), []) or rule.holds(v))


def _is_device(value: Any) -> bool:
    try:
        torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return True


_NAME = Rule("a name", lambda v: isinstance(v, str) and bool(v))
_NAMES = _list(_NAME)
_SHARE = _number(0, 1)
_WEIGHT = _number(0)
_WIDTH = _whole(1, 2**16)
_SIDE = _whole(1, 2**16)
_DROP = Rule("at least 0 and below 1", lambda v: _SHARE.holds(v) and v < 1)
_BATCH_NORMS = ("BN", "SyncBN", "FrozenBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_NORM = _choice("", *_BATCH_NORMS, "GN", "LN")

_SCHEDULES = ["WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR"]
if "NUM_DECAYS" in get_cfg().SOLVER:  # Detectron2 after v0.6
    _SCHEDULES.append("WarmupStepWithFixedGammaLR")

# key, or pattern of keys -> what its value must be
_RULES: dict[str, Rule] = {
    "VERSION": _choice(2),
    "SEED": _whole(-(2**31)),
    "MODEL.META_ARCHITECTURE": Rule(
        "KNet, or what is registered", lambda v: v == "KNet" or v in META_ARCH_REGISTRY
    ),
    "MODEL.DEVICE": Rule("cpu, cuda, cuda:0 …", _is_device),
    "MODEL.PIXEL_MEAN": _list(_number(-1e6, 1e6), least=1),
    "MODEL.PIXEL_STD": _list(_number(0, 1e6, above=True), least=1),
    "MODEL.BACKBONE.FREEZE_AT": _whole(0, 5),
    "MODEL.KNET.NUM_*_CLASSES": _whole(-1),
    "MODEL.KNET.THING_IDS": _list(_whole(0)),
    "MODEL.KNET.NUM_KERNELS": _whole(0, 2**16),
    "MODEL.KNET.TEST.NUM_KERNELS": _whole(0, 2**16),
    "MODEL.KNET.MASK_PILOTS": _whole(0, 2**10),
    "MODEL.KNET.ONE_TO_MANY": _whole(0, 2**10),
    "MODEL.KNET.MASK_LEVEL": _whole(0, 1),
    "MODEL.KNET.NUM_ROUNDS": _whole(1, 100),
    "MODEL.KNET.ROUND_REPEATS": _whole(1, 100),
    "MODEL.KNET.GROUPING": _choice("hard", "exclusive"),
    "MODEL.KNET.ROUND_LEVELS": _NAMES,
    "MODEL.KNET.NECK_LAYERS": _whole(1, 100),
    "MODEL.KNET.KERNEL_HEAD": _choice("learned", *PIXEL_DECODERS),
    "MODEL.KNET.HIDDEN_DIM": _WIDTH,
    "MODEL.KNET.UPDATER_DIM": Rule(f"-1, or {_WIDTH.text}", lambda v: v == -1 or _WIDTH.holds(v)),
    "MODEL.KNET.NUM_HEADS": _WIDTH,
    "MODEL.KNET.FFN_DIM": _WIDTH,
    "MODEL.KNET.NORM_GROUPS": _WIDTH,
    "MODEL.KNET.IN_FEATURES": _list(_NAME, least=1),
    "MODEL.KNET.MASK_UPSAMPLE": _whole(1, 64),
    "MODEL.KNET.CONV_INIT_STD": _number(0, above=True),
    "MODEL.KNET.CLASS_PRIOR": Rule("above 0 and below 1", lambda v: _DROP.holds(v) and v > 0),
    "MODEL.KNET.SIZE_DIVISIBILITY": _whole(1, 2**12),
    "MODEL.KNET.MIN_TRAIN_SIZE": _list(_whole(0, 2**16), count=2),
    "MODEL.KNET.ACCEL.DTYPE": _choice("float32", "float16", "bfloat16"),
    "MODEL.KNET.ACCEL.GRAPHS": _whole(0, 2**12),
    "MODEL.KNET.ACCEL.RECOMPUTE": _list(_choice("backbone", "rounds", "losses")),
    "MODEL.KNET.SEMANTIC.NORM": _choice(*_BATCH_NORMS, "GN", "LN"),
    "MODEL.KNET.SEMANTIC.DROPOUT": _DROP,
    "MODEL.KNET.SEMANTIC.AUX_DIM": _WIDTH,
    "MODEL.KNET.LOSS.*_WEIGHT": _WEIGHT,
    "MODEL.KNET.LOSS.NUM_POINTS": _whole(0),
    "MODEL.KNET.COST.*_WEIGHT": _WEIGHT,
    "MODEL.KNET.TEST.*_THRESH": _SHARE,
    "MODEL.KNET.TEST.PANOPTIC_MASK_SCORES": _number(0, 100),
    "MODEL.KNET.TEST.MIN_AREA": _whole(0),
    "MODEL.KNET.TEST.MASK_MEMORY": _whole(1, 2**20),
    "MODEL.KNET.TEST.CLASSES": _list(
        Rule("a name or label", lambda v: isinstance(v, (str, int)) and not isinstance(v, bool))
    ),
    "MODEL.KNET.TEST.WINDOW.SIZE": _or_empty(_list(_SIDE, count=2)),
    "MODEL.KNET.TEST.WINDOW.STRIDE": _or_empty(_list(_SIDE, count=2)),
    "MODEL.KNET.TEST.WINDOW.BATCH_SIZE": _whole(1),
    "MODEL.RESNETS.OUT_FEATURES": _list(_NAME, least=1),
    "MODEL.RESNETS.DEPTH": _choice(18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": _NORM,
    "MODEL.RESNETS.*_OUT_CHANNELS": _WIDTH,
    "MODEL.RESNETS.NUM_GROUPS": _WIDTH,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _WIDTH,
    "MODEL.RESNETS.RES5_DILATION": _choice(1, 2),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": _WIDTH,
    "MODEL.RESNET_V1C.OUTPUT_STRIDE": _choice(8, 16, 32),
    "MODEL.FPN.OUT_CHANNELS": _WIDTH,
    "MODEL.FPN.NORM": _NORM,
    "MODEL.FPN.FUSE_TYPE": _choice("sum", "avg"),
    "MODEL.SWIN.EMBED_DIM": _WIDTH,
    "MODEL.SWIN.DEPTHS": _list(_whole(1, 1000), count=4),
    "MODEL.SWIN.NUM_HEADS": _list(_WIDTH, count=4),
    "MODEL.SWIN.WINDOW_SIZE": _SIDE,
    "MODEL.SWIN.DROP_PATH_RATE": _DROP,
    "MODEL.TIMM.DROP_PATH_RATE": Rule(f"-1, or {_DROP.text}", lambda v: v == -1 or _DROP.holds(v)),
    "MODEL.SMALL_RESNET.CHANNELS": _list(_WIDTH, count=4),
    "MODEL.SMALL_RESNET.BLOCKS": _list(_whole(1, 1000), count=4),
    "MODEL.SMALL_RESNET.STEM_STRIDE": _whole(1, 64),
    "MODEL.SMALL_RESNET.NORM": _NORM,
    "SOLVER.BASE_LR": _number(0, above=True),
    "SOLVER.BASE_LR_END": _number(0),
    "SOLVER.BACKBONE_MULTIPLIER": _WEIGHT,
    "SOLVER.WEIGHT_DECAY": _WEIGHT,
    "SOLVER.WEIGHT_DECAY_*": Rule(
        f"None (as WEIGHT_DECAY) or {_WEIGHT.text}", lambda v: v is None or _WEIGHT.holds(v)
    ),
    "SOLVER.NO_DECAY": _NAMES,
    "SOLVER.LR_SCHEDULER_NAME": _choice(*_SCHEDULES),
    "SOLVER.GAMMA": _number(0, above=True),
    "SOLVER.POLY_LR_POWER": _number(0),
    "SOLVER.NUM_DECAYS": _whole(1),
    "SOLVER.STEPS": _list(_whole(1)),
    "SOLVER.MAX_ITER": _whole(1),
    "SOLVER.WARMUP_ITERS": _whole(0),
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_METHOD": _choice("linear", "constant"),
    "SOLVER.IMS_PER_BATCH": _whole(1, 2**20),
    "SOLVER.REFERENCE_WORLD_SIZE": _whole(0),
    "SOLVER.REFERENCE_BATCH": _whole(0, 2**20),
    "SOLVER.EMA": _DROP,
    "SOLVER.ACCUMULATION_STEPS": _whole(1),
    "SOLVER.CHECKPOINT_PERIOD": _whole(1),
    "SOLVER.CHECKPOINT_MINUTES": _number(0),
    "SOLVER.AMP.DTYPE": _choice("auto", "bfloat16", "float16"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _number(0, above=True),
    "DATALOADER.NUM_WORKERS": _whole(0, 4096),
    "DATASETS.TRAIN": _NAMES,
    "DATASETS.TEST": _NAMES,
    # L is grey, with one value each in MODEL.PIXEL_MEAN and PIXEL_STD
    "INPUT.FORMAT": _choice(*FORMATS),
    "INPUT.MAX_PIXELS": _whole(1),
    "INPUT.CONTRAST_CUTOFF": _number(0, 49),
    "INPUT.MIN_SIZE_TRAIN": _list(_whole(0, 2**16), least=1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": _choice("choice", "range"),
    "INPUT.MAX_SIZE_*": _SIDE,
    "INPUT.MIN_SIZE_TEST": _whole(0, 2**16),
    "INPUT.COPY_PASTE": _SHARE,
    "INPUT.SCALE_JITTER": _or_empty(_list(_number(0, 100, above=True), count=2)),
    "INPUT.CROP.TYPE": _choice("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": _number(0, 1, above=True),
    "TEST.DETECTIONS_PER_IMAGE": _whole(1),
    "TEST.EVAL_PERIOD": _whole(0),
    "TEST.BEST_METRIC": Rule(
        "task/score, such as segm/AP50, or empty",
        lambda v: isinstance(v, str) and (not v or bool(re.fullmatch(r"[^/]+(/[^/]+)+", v))),
    ),
    "TEST.PATIENCE": _whole(0),
    "TEST.PICTURES": _whole(0, 100),
    "TRACKING.WRITERS": _list(_choice("wandb", "mlflow")),
    "TRACKING.PROJECT": _NAME,
    "TEST.AUG.MIN_SIZES": _list(_SIDE),
    "TEST.AUG.MAX_SIZE": _SIDE,
}


def check_config(cfg: CfgNode) -> None:
    """Raise ValueError for values that cannot work; the message names every key and what it can be.

    `get_cfg_from_file` and `KNet.from_config` do so: a config may be made or changed by hand.
    """
    # relations are between values that can be
    problems = [*_single(cfg)] or [*_model_relations(cfg), *_relations(cfg)]
    if problems:
        raise ValueError(
            "; ".join(f"{key} is {shown(value_of(cfg, key))}; {text}" for key, text in problems)
        )


def _single(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Keys, and what their values must be."""
    keys = list(flat_keys(cfg))  # not every version of Detectron2 has every key
    for pattern, rule in _RULES.items():
        for key in fnmatch.filter(keys, pattern):
            if not rule.holds(value_of(cfg, key)):
                yield key, f"it must be {rule.text}"


def _relations(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    inputs, solver = cfg.INPUT, cfg.SOLVER
    channels = FORMATS[inputs.FORMAT][1]
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[key]) != channels:
            values = f"{channels} value{'s' * (channels > 1)}, one a channel"
            yield f"MODEL.{key}", f"with INPUT.FORMAT {inputs.FORMAT} it must have {values}"
    if list(solver.STEPS) != sorted(set(solver.STEPS)):
        yield "SOLVER.STEPS", "steps must rise"
    sizes = list(inputs.MIN_SIZE_TRAIN)
    if inputs.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or sizes != sorted(sizes)):
        text = "with MIN_SIZE_TRAIN_SAMPLING range it must be (smallest, largest)"
        yield "INPUT.MIN_SIZE_TRAIN", text
    pixels = inputs.CROP.TYPE.startswith("absolute")
    crop = _list(_SIDE if pixels else _number(0, 1, above=True), count=2)
    if not crop.holds(inputs.CROP.SIZE):
        yield "INPUT.CROP.SIZE", f"with CROP.TYPE {inputs.CROP.TYPE} it must be {crop.text}"
    if inputs.SCALE_JITTER:
        if inputs.SCALE_JITTER[0] > inputs.SCALE_JITTER[1]:
            yield "INPUT.SCALE_JITTER", "it must be (least, largest)"
        for key, needed in (("ENABLED", True), ("TYPE", "absolute")):
            if inputs.CROP[key] != needed:
                text = f"with INPUT.SCALE_JITTER it must be {shown(needed)}: pictures get CROP.SIZE"
                yield f"INPUT.CROP.{key}", text
    if inputs.COPY_PASTE and inputs.KNET_TARGETS and "instances" not in inputs.KNET_TARGETS:
        targets = f"INPUT.KNET_TARGETS {shown(inputs.KNET_TARGETS)}"
        yield "INPUT.COPY_PASTE", f"there are no objects to paste in {targets}: set it to 0.0"
    if solver.REFERENCE_BATCH and solver.REFERENCE_WORLD_SIZE:
        yield "SOLVER.REFERENCE_BATCH", "with REFERENCE_WORLD_SIZE, which scales the rate, it is 0"
    clip = solver.CLIP_GRADIENTS
    for key, value in (("CLIP_TYPE", "full_model"), ("NORM_TYPE", 2.0)):
        if clip.ENABLED and clip[key] != value:
            why = "K-Net clips the L2 norm of all gradients together"
            text = f"with ENABLED it must be {shown(value)}: {why}"
            yield f"SOLVER.CLIP_GRADIENTS.{key}", text
    window = cfg.MODEL.KNET.TEST.WINDOW
    if any(stride > size for stride, size in zip(window.STRIDE, window.SIZE)):
        text = f"beyond WINDOW.SIZE {shown(window.SIZE)} it would leave pixels out"
        yield "MODEL.KNET.TEST.WINDOW.STRIDE", text


def _model_relations(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    knet = cfg.MODEL.KNET
    updater = "UPDATER_DIM" if knet.UPDATER_DIM > 0 else "HIDDEN_DIM"
    learned = knet.KERNEL_HEAD == "learned"
    divisors = [(updater, "HIDDEN_DIM"), ("NUM_HEADS", updater)]
    for key, of in [*divisors, ("NORM_GROUPS", "HIDDEN_DIM")] if learned else divisors:
        if knet[of] % knet[key]:
            yield f"MODEL.KNET.{key}", f"it must divide MODEL.KNET.{of} ({knet[of]})"
    if learned and len(knet.IN_FEATURES) < 2:
        yield "MODEL.KNET.IN_FEATURES", "the neck fuses two or more"
    yield from _round_relations(knet)
    if knet.KERNEL_PEAKS and (not learned or knet.KERNEL_PLACES):
        text = "it is for kernels of objects, and for those without KERNEL_PLACES: set it to False"
        yield "MODEL.KNET.KERNEL_PEAKS", text
    for key in ("MASK_PILOTS", "ONE_TO_MANY"):
        if knet[key] and not learned:
            text = "it is for kernels of objects, which a semantic model has not: set it to 0"
            yield f"MODEL.KNET.{key}", text
    if knet.TEST.NUM_KERNELS and not knet.KERNEL_PEAKS:
        text = (
            "without KERNEL_PEAKS kernels are learned, and their number is NUM_KERNELS: set it to 0"
        )
        yield "MODEL.KNET.TEST.NUM_KERNELS", text
    for key, without in (("DTYPE", "float32"), ("RECOMPUTE", ())):
        if not knet.ACCEL.ENABLED and knet.ACCEL[key] not in (without, list(without)):
            text = f"without MODEL.KNET.ACCEL.ENABLED it must be {shown(without)}"
            yield f"MODEL.KNET.ACCEL.{key}", text
    if cfg.MODEL.TIMM.FROZEN and cfg.MODEL.TIMM.GRADIENT_CHECKPOINTING:
        text = "with MODEL.TIMM.FROZEN there is nothing to compute again: set it to False"
        yield "MODEL.TIMM.GRADIENT_CHECKPOINTING", text
    groups = 32  # of Detectron2's GN
    widths = {}
    if not learned and knet.SEMANTIC.NORM == "GN":
        widths["MODEL.KNET.HIDDEN_DIM"] = [knet.HIDDEN_DIM]
        if knet.LOSS.AUX_WEIGHT:
            widths["MODEL.KNET.SEMANTIC.AUX_DIM"] = [knet.SEMANTIC.AUX_DIM]
    if "small_resnet" in cfg.MODEL.BACKBONE.NAME and cfg.MODEL.SMALL_RESNET.NORM == "GN":
        widths["MODEL.SMALL_RESNET.CHANNELS"] = cfg.MODEL.SMALL_RESNET.CHANNELS
    for key, numbers in widths.items():
        if any(number % groups for number in numbers):
            yield key, f"with NORM GN it must be multiples of {groups}"
    resnets, backbone = cfg.MODEL.RESNETS, cfg.MODEL.BACKBONE.NAME
    basic = backbone.startswith("build_resnet_") and resnets.DEPTH < 50
    if basic and resnets.RES2_OUT_CHANNELS != 64:
        yield "MODEL.RESNETS.RES2_OUT_CHANNELS", f"a ResNet of DEPTH {resnets.DEPTH} has 64"


def _round_relations(knet: CfgNode) -> Iterator[tuple[str, str]]:
    learned = knet.KERNEL_HEAD == "learned"
    if knet.GROUPING != "hard" and not learned:
        yield "MODEL.KNET.GROUPING", "kernels of a semantic model share pixels: set it to 'hard'"
    key, levels = "MODEL.KNET.ROUND_LEVELS", list(knet.IN_FEATURES)[knet.MASK_LEVEL :]
    if knet.ROUND_LEVELS and not learned:
        yield key, "a semantic model has no neck with levels: leave it empty"
    elif any(name not in levels for name in knet.ROUND_LEVELS):
        yield key, f"these can only be of {levels}: MODEL.KNET.IN_FEATURES from MASK_LEVEL on"
    elif len(knet.ROUND_LEVELS) > (number := knet.NUM_ROUNDS * knet.ROUND_REPEATS):
        yield (
            key,
            f"each of {number} rounds (NUM_ROUNDS times ROUND_REPEATS) sees one: name no more",
        )
