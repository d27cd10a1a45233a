"""Heads, criterion and task that a config asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from knet.inference.postprocess import InferenceOptions
from knet.modeling.build_neck import build_neck
from knet.modeling.class_choice import chosen_classes
from knet.modeling.classes import ClassIds
from knet.modeling.criterion import KNetCriterion, LossWeights, SemanticCriterion
from knet.modeling.grouping import soft_groups
from knet.modeling.heads import KNetHeads, SemanticHeads
from knet.modeling.kernel_head import KernelHead
from knet.modeling.kernel_rounds import KernelRounds
from knet.modeling.kernel_update import UpdateRound
from knet.modeling.losses import AllPixels, SampledPoints
from knet.modeling.matcher import MaskMatcher
from knet.modeling.pixel_classifier import PixelClassifier
from knet.modeling.pixel_decoders import PIXEL_DECODERS, FCNDecoder
from knet.modeling.places import PlaceEncoding
from knet.modeling.task import MaskTask, SemanticTask


def is_semantic(cfg: CfgNode) -> bool:
    """Whether MODEL.KNET.KERNEL_HEAD makes a semantic model."""
    return cfg.MODEL.KNET.KERNEL_HEAD != "learned"


def build_parts(
    cfg: CfgNode, shapes: Mapping[str, ShapeSpec], class_ids: ClassIds
) -> dict[str, Any]:
    """`heads`, `criterion` and `task` as arguments of `KNet`.

    Args:
        cfg: whose MODEL.KNET is read.
        shapes: what the backbone gives.
        class_ids: the classes.

    Raises:
        ValueError: a feature that the backbone does not give, strides that do not fit, or results
            that this model cannot give.
    """
    missing = [name for name in cfg.MODEL.KNET.IN_FEATURES if name not in shapes]
    if missing:
        raise ValueError(
            f"MODEL.KNET.IN_FEATURES names {missing}, but {cfg.MODEL.BACKBONE.NAME} gives "
            f"{sorted(shapes)}{_other_backbone(cfg)}"
        )
    build = _semantic_parts if is_semantic(cfg) else _mask_parts
    return build(cfg, shapes, class_ids)


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
    stride = shapes[knet.IN_FEATURES[1]].stride
    if stride % knet.MASK_UPSAMPLE or knet.SIZE_DIVISIBILITY % stride:
        raise ValueError(
            f"MODEL.KNET.MASK_UPSAMPLE ({knet.MASK_UPSAMPLE}) must divide the masks' stride "
            f"({stride}, which the second of MODEL.KNET.IN_FEATURES {knet.IN_FEATURES} has with "
            f"{cfg.MODEL.BACKBONE.NAME}), and that stride MODEL.KNET.SIZE_DIVISIBILITY "
            f"({knet.SIZE_DIVISIBILITY})"
        )
    heads = KNetHeads(
        neck=build_neck(cfg, shapes),
        kernel_head=KernelHead(
            hidden_dim=knet.HIDDEN_DIM,
            num_kernels=knet.NUM_KERNELS if things else 0,
            num_thing_classes=things,
            num_stuff_classes=stuff,
            norm_groups=knet.NORM_GROUPS,
            conv_std=knet.CONV_INIT_STD,
            class_prior=knet.CLASS_PRIOR,
            places=PlaceEncoding(knet.HIDDEN_DIM) if knet.KERNEL_PLACES else None,
        ),
        rounds=_rounds(cfg, num_classes=things + stuff, class_prior=knet.CLASS_PRIOR),
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
            overlap_threshold=knet.TEST.OVERLAP_THRESH,
            min_area=knet.TEST.MIN_AREA,
            mask_scores=knet.TEST.MASK_SCORES,
            classes=chosen_classes(cfg, class_ids),
        ),
        mask_upsample=knet.MASK_UPSAMPLE,
        loss_stride=stride // knet.MASK_UPSAMPLE,
    )
    return {"heads": heads, "criterion": criterion, "task": task}


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
        rounds=_rounds(cfg, num_classes=None, grouping=soft_groups, xavier=False),
        auxiliary=auxiliary,
        auxiliary_index=index,
    )
    criterion = SemanticCriterion(
        weight=knet.LOSS.SEG_WEIGHT, auxiliary_weight=knet.LOSS.AUX_WEIGHT
    )
    return {"heads": heads, "criterion": criterion, "task": SemanticTask()}


def _rounds(cfg: CfgNode, *, num_classes: int | None, **arguments: Any) -> KernelRounds:
    knet = cfg.MODEL.KNET
    rounds = (
        UpdateRound(
            dim=knet.HIDDEN_DIM,
            num_heads=knet.NUM_HEADS,
            ffn_dim=knet.FFN_DIM,
            num_classes=num_classes,
            residual_masks=knet.RESIDUAL_MASKS,
            updater_dim=knet.UPDATER_DIM if knet.UPDATER_DIM > 0 else None,
            **arguments,
        )
        for _ in range(knet.NUM_ROUNDS)
    )
    return KernelRounds(rounds, recompute="rounds" in knet.RECOMPUTE)
