"""What a config asks for: the arguments of `KNet`. Besides, only builders of backbones read one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from detectron2.utils.registry import Registry
from torch import nn

from knet.classes import ClassIds, chosen_classes, class_ids_from_config
from knet.config_check import check_config
from knet.config_file import inference_kernels
from knet.errors import nearest
from knet.modeling.backbones import init_fpn
from knet.modeling.build_neck import KNET_NECK_REGISTRY
from knet.modeling.criterion import KNetCriterion, LossWeights
from knet.modeling.grouping import exclusive_groups, hard_groups, soft_groups
from knet.modeling.images import SlidingWindow
from knet.modeling.kernels import KernelHead, KernelRounds, KNetHeads, UpdateRound
from knet.modeling.layers import group_norm
from knet.modeling.level_rounds import LevelRound
from knet.modeling.losses import AllPixels, SampledPoints
from knet.modeling.matcher import MaskMatcher
from knet.modeling.peaks import PeakKernels
from knet.modeling.positions import PlaceEncoding
from knet.modeling.postprocess import InferenceOptions, Streaming
from knet.modeling.semantic import PIXEL_DECODERS, FCNDecoder, PixelClassifier, SemanticHeads
from knet.modeling.semantic_criterion import SemanticCriterion
from knet.modeling.task import MaskTask, SemanticTask
from knet.modeling.training_kernels import ManyKernels, MaskPilots


def is_semantic(cfg: CfgNode) -> bool:
    """Whether MODEL.KNET.KERNEL_HEAD makes a semantic model."""
    return cfg.MODEL.KNET.KERNEL_HEAD != "learned"


def model_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Everything that the constructor of `KNet` takes.

    Raises:
        ValueError: a value out of range, an unknown name, classes that the data sets do not have,
            a feature that the backbone does not give, strides that do not fit, or results that
            this model cannot give.
    """
    check_config(cfg)
    knet, semantic = cfg.MODEL.KNET, is_semantic(cfg)
    require_registered(BACKBONE_REGISTRY, "MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME)
    backbone = init_fpn(build_backbone(cfg))
    shapes = backbone.output_shape()
    missing = [name for name in knet.IN_FEATURES if name not in shapes]
    if missing:
        raise ValueError(
            f"MODEL.KNET.IN_FEATURES names {missing}, but {cfg.MODEL.BACKBONE.NAME} gives "
            f"{sorted(shapes)}{_other_backbone(cfg)}"
        )
    class_ids = class_ids_from_config(cfg, semantic=semantic)
    window = knet.TEST.WINDOW
    if len(window.SIZE) and not semantic:
        raise ValueError(
            "MODEL.KNET.TEST.WINDOW is for semantic models; this one finds objects, which "
            "windows would cut: leave WINDOW.SIZE empty"
        )
    build = _semantic_parts if semantic else _mask_parts
    return {
        **build(cfg, shapes, class_ids),
        "backbone": backbone,
        "in_features": knet.IN_FEATURES,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "size_divisibility": max(knet.SIZE_DIVISIBILITY, backbone.size_divisibility),
        "min_train_size": knet.MIN_TRAIN_SIZE,
        "window": SlidingWindow.from_sizes(window.SIZE, window.STRIDE, window.BATCH_SIZE),
        "freeze_norm_stats": knet.FREEZE_NORM_STATS,
        "channels_last": knet.CHANNELS_LAST,
    }


def require_registered(registry: Registry, key: str, name: str) -> str:
    """The name itself; ValueError if the registry has no such thing."""
    if name not in registry:
        near = nearest(name, (known for known, _ in registry))
        raise ValueError(f"{key} is {name!r}, which nothing is registered as; there are {near}")
    return name


def _other_backbone(cfg: CfgNode) -> str:
    """Says which backbone gives the features that are asked for: the same with or without FPN."""
    name, wanted = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.KNET.IN_FEATURES
    if "_fpn_backbone" in name:
        other, prefix = name.replace("_fpn_backbone", "_backbone"), "res"
    else:
        other, prefix = name.replace("_backbone", "_fpn_backbone"), "p"
    if other in BACKBONE_REGISTRY and all(feature.startswith(prefix) for feature in wanted):
        return f": set MODEL.BACKBONE.NAME to {other}"
    return ""


def _mask_parts(
    cfg: CfgNode, shapes: Mapping[str, ShapeSpec], class_ids: ClassIds
) -> dict[str, Any]:
    knet = cfg.MODEL.KNET
    things, stuff = len(class_ids.things), len(class_ids.stuff)
    if not things + stuff:
        names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
        raise ValueError(
            f"{', '.join(names) or 'the config'}: neither instance nor panoptic classes; semantic "
            "data need a semantic model, see MODEL.KNET.KERNEL_HEAD"
        )
    if things and knet.NUM_KERNELS < 1:
        raise ValueError(
            f"MODEL.KNET.NUM_KERNELS is {knet.NUM_KERNELS}, but {things} thing classes need kernels"
        )
    stride = shapes[knet.IN_FEATURES[knet.MASK_LEVEL]].stride
    if stride % knet.MASK_UPSAMPLE or knet.SIZE_DIVISIBILITY % stride:
        raise ValueError(
            f"MODEL.KNET.MASK_UPSAMPLE ({knet.MASK_UPSAMPLE}) must divide the masks' stride "
            f"({stride}, which MODEL.KNET.IN_FEATURES {knet.IN_FEATURES} [{knet.MASK_LEVEL}] has "
            f"with {cfg.MODEL.BACKBONE.NAME}), and that stride MODEL.KNET.SIZE_DIVISIBILITY "
            f"({knet.SIZE_DIVISIBILITY})"
        )
    heads = KNetHeads(
        neck=_neck(cfg, shapes),
        kernel_head=KernelHead(
            hidden_dim=knet.HIDDEN_DIM,
            num_kernels=knet.NUM_KERNELS if things else 0,
            num_thing_classes=things,
            num_stuff_classes=stuff,
            norm_groups=knet.NORM_GROUPS,
            conv_std=knet.CONV_INIT_STD,
            class_prior=knet.CLASS_PRIOR,
            places=PlaceEncoding(knet.HIDDEN_DIM) if knet.KERNEL_PLACES else None,
            peaks=_peaks(cfg) if knet.KERNEL_PEAKS and things else None,
        ),
        rounds=_rounds(
            cfg,
            LevelRound if knet.ROUND_LEVELS else UpdateRound,
            num_classes=things + stuff,
            class_prior=knet.CLASS_PRIOR,
            grouping={"hard": hard_groups, "exclusive": exclusive_groups}[knet.GROUPING],
        ),
        training_kernels=_training_kernels(cfg, things),
    )
    criterion = KNetCriterion(
        num_thing_classes=things,
        num_stuff_classes=stuff,
        matcher=MaskMatcher(
            class_weight=knet.COST.CLASS_WEIGHT,
            mask_weight=knet.COST.MASK_WEIGHT,
            dice_weight=knet.COST.DICE_WEIGHT,
        ),
        weights=LossWeights(
            classes=knet.LOSS.CLASS_WEIGHT,
            mask=knet.LOSS.MASK_WEIGHT,
            dice=knet.LOSS.DICE_WEIGHT,
            rank=knet.LOSS.RANK_WEIGHT,
            seg=knet.LOSS.SEG_WEIGHT,
            peak=knet.LOSS.PEAK_WEIGHT,
            extra=knet.LOSS.EXTRA_WEIGHT,
        ),
        places=SampledPoints(knet.LOSS.NUM_POINTS) if knet.LOSS.NUM_POINTS else AllPixels(),
    )
    task = MaskTask(
        class_ids=class_ids,
        options=InferenceOptions(
            instance=knet.TEST.INSTANCE_ON,
            panoptic=knet.TEST.PANOPTIC_ON,
            semantic=knet.TEST.SEMANTIC_ON,
            top_k=cfg.TEST.DETECTIONS_PER_IMAGE,
            score_threshold=knet.TEST.SCORE_THRESH,
            mask_threshold=knet.TEST.MASK_THRESH,
            thing_threshold=knet.TEST.THING_THRESH,
            stuff_threshold=knet.TEST.STUFF_THRESH,
            overlap_threshold=knet.TEST.OVERLAP_THRESH,
            min_area=knet.TEST.MIN_AREA,
            mask_scores=knet.TEST.MASK_SCORES,
            panoptic_mask_scores=knet.TEST.PANOPTIC_MASK_SCORES,
            classes=chosen_classes(cfg, class_ids),
        ),
        streaming=Streaming(chunk_bytes=knet.TEST.MASK_MEMORY << 20),
        mask_upsample=knet.MASK_UPSAMPLE,
        loss_stride=stride // knet.MASK_UPSAMPLE,
    )
    return {"heads": heads, "criterion": criterion, "task": task}


def _neck(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> nn.Module:
    knet = cfg.MODEL.KNET
    name = require_registered(KNET_NECK_REGISTRY, "MODEL.KNET.NECK", knet.NECK)
    neck = KNET_NECK_REGISTRY.get(name)(cfg, shapes)
    if len(getattr(neck, "round_levels", ())) != len(knet.ROUND_LEVELS):
        raise ValueError(
            f"MODEL.KNET.ROUND_LEVELS is {list(knet.ROUND_LEVELS)}, but MODEL.KNET.NECK {name} "
            "does not give the maps of these levels: leave it empty, or take a neck that does"
        )
    _try_neck(neck, [shapes[feature] for feature in knet.IN_FEATURES], cfg)
    return neck


@torch.no_grad()
def _try_neck(neck: nn.Module, levels: Sequence[ShapeSpec], cfg: CfgNode) -> None:
    """See that a neck, which may be the user's own, gives maps of the size that masks have."""
    knet, side = cfg.MODEL.KNET, 2 * levels[-1].stride
    maps = [torch.zeros(1, s.channels, side // s.stride, side // s.stride) for s in levels]
    training = neck.training
    where, what = neck.eval()(maps)[:2]  # in training it might count statistics
    neck.train(training)
    size = maps[knet.MASK_LEVEL].shape[-2:]
    wanted = (1, knet.HIDDEN_DIM, *size)
    for found in (where, what):
        if found.shape != wanted:
            raise ValueError(
                f"MODEL.KNET.NECK {knet.NECK} gives a map of shape {tuple(found.shape)} where "
                f"{wanted} is needed: MODEL.KNET.HIDDEN_DIM channels at the stride of "
                f"{knet.IN_FEATURES[knet.MASK_LEVEL]}, which MODEL.KNET.MASK_LEVEL names"
            )


def _peaks(cfg: CfgNode) -> PeakKernels:
    knet = cfg.MODEL.KNET
    return PeakKernels(
        hidden_dim=knet.HIDDEN_DIM,
        num_kernels=knet.NUM_KERNELS,
        num_test_kernels=inference_kernels(cfg)[1],
        norm=group_norm(knet.NORM_GROUPS),
    )


def _training_kernels(cfg: CfgNode, things: int) -> dict[str, nn.Module]:
    knet = cfg.MODEL.KNET
    for key in ("MASK_PILOTS", "ONE_TO_MANY"):
        if knet[key] and not things:
            raise ValueError(
                f"MODEL.KNET.{key} is {knet[key]}, but it is for kernels of objects, and there are "
                "no thing classes: set it to 0"
            )
    parts: dict[str, nn.Module] = {}
    if knet.MASK_PILOTS:
        parts["pilots"] = MaskPilots(
            num_thing_classes=things,
            hidden_dim=knet.HIDDEN_DIM,
            copies=knet.MASK_PILOTS,
            most=knet.NUM_KERNELS,
        )
    if knet.ONE_TO_MANY:
        parts["many"] = ManyKernels(
            hidden_dim=knet.HIDDEN_DIM,
            num_kernels=knet.NUM_KERNELS,
            repeats=knet.ONE_TO_MANY,
            places=PlaceEncoding(knet.HIDDEN_DIM) if knet.KERNEL_PLACES else None,
        )
    return parts


def _semantic_parts(
    cfg: CfgNode, shapes: Mapping[str, ShapeSpec], class_ids: ClassIds
) -> dict[str, Any]:
    knet = cfg.MODEL.KNET
    impossible = [key for key in ("INSTANCE_ON", "PANOPTIC_ON") if knet.TEST[key]]
    if impossible or not knet.TEST.SEMANTIC_ON:
        raise ValueError(
            f"a semantic model (MODEL.KNET.KERNEL_HEAD {knet.KERNEL_HEAD!r}) gives semantic maps "
            "only: set MODEL.KNET.TEST.SEMANTIC_ON True, INSTANCE_ON and PANOPTIC_ON False"
        )
    if knet.KERNEL_PLACES:
        raise ValueError(
            "MODEL.KNET.KERNEL_PLACES is for kernels of objects; those of a semantic model stand "
            "for classes: set it to False"
        )
    if knet.TEST.MIN_AREA > 0 or knet.TEST.CLASSES:
        raise ValueError(
            f"MODEL.KNET.TEST.MIN_AREA ({knet.TEST.MIN_AREA}) and MODEL.KNET.TEST.CLASSES "
            f"({list(knet.TEST.CLASSES)}) choose among instances and panoptic segments, which a "
            "semantic model does not give: set them to 0 and []"
        )
    classes = len(class_ids.stuff)

    def norm(channels: int) -> nn.Module:
        return get_norm(knet.SEMANTIC.NORM, channels)

    def classifier(decoder: nn.Module, channels: int) -> PixelClassifier:
        return PixelClassifier(
            decoder, channels=channels, num_classes=classes, dropout=knet.SEMANTIC.DROPOUT
        )

    decoder = PIXEL_DECODERS[knet.KERNEL_HEAD](
        in_channels=[shapes[name].channels for name in knet.IN_FEATURES],
        channels=knet.HIDDEN_DIM,
        norm=norm,
    )
    auxiliary, index, name = None, 0, knet.SEMANTIC.AUX_FEATURE
    if knet.LOSS.AUX_WEIGHT:
        if name not in knet.IN_FEATURES:
            raise ValueError(
                f"MODEL.KNET.SEMANTIC.AUX_FEATURE is {name!r}, which is none of "
                f"MODEL.KNET.IN_FEATURES {list(knet.IN_FEATURES)}; without an auxiliary head set "
                "MODEL.KNET.LOSS.AUX_WEIGHT to 0"
            )
        index = list(knet.IN_FEATURES).index(name)
        body = FCNDecoder(
            in_channels=[shapes[name].channels],
            channels=knet.SEMANTIC.AUX_DIM,
            norm=norm,
            num_convs=1,
            concat_input=False,
        )
        auxiliary = classifier(body, knet.SEMANTIC.AUX_DIM)
    heads = SemanticHeads(
        kernel_head=classifier(decoder, knet.HIDDEN_DIM),
        rounds=_rounds(cfg, UpdateRound, num_classes=None, grouping=soft_groups, xavier=False),
        auxiliary=auxiliary,
        auxiliary_index=index,
    )
    criterion = SemanticCriterion(
        weight=knet.LOSS.SEG_WEIGHT, auxiliary_weight=knet.LOSS.AUX_WEIGHT
    )
    return {"heads": heads, "criterion": criterion, "task": SemanticTask()}


def _rounds(cfg: CfgNode, kind: type[UpdateRound], **arguments: Any) -> KernelRounds:
    knet = cfg.MODEL.KNET
    rounds = (
        kind(
            dim=knet.HIDDEN_DIM,
            num_heads=knet.NUM_HEADS,
            ffn_dim=knet.FFN_DIM,
            residual_masks=knet.RESIDUAL_MASKS,
            updater_dim=knet.UPDATER_DIM if knet.UPDATER_DIM > 0 else None,
            **arguments,
        )
        for _ in range(knet.NUM_ROUNDS)
    )
    return KernelRounds(rounds, repeats=knet.ROUND_REPEATS)
