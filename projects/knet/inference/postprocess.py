"""One pass over the kernels of an image that yields every result asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from knet.inference.instances import InstanceResult, InstanceSelection
from knet.inference.panoptic import PanopticFusion, PanopticSegment, kernel_scores
from knet.inference.resize import MaskResizer
from knet.inference.semantic import SemanticScores


@dataclass(frozen=True)
class InferenceOptions:
    """Which results are wanted, and the thresholds of each (published defaults)."""

    instance: bool = True
    panoptic: bool = True
    semantic: bool = True
    top_k: int = 100
    score_threshold: float = 0.0
    mask_threshold: float = 0.5
    thing_threshold: float = 0.3
    overlap_threshold: float = 0.6


@dataclass
class ImageResult:
    """Results of one image at its original size; None for what was not asked for.

    Attributes:
        instances: see `InstanceResult`.
        panoptic: id map (H, W) int32 and its segments.
        semantic: (T + S, H, W) scores.
    """

    instances: InstanceResult | None = None
    panoptic: tuple[Tensor, list[PanopticSegment]] | None = None
    semantic: Tensor | None = None


@torch.no_grad()
def postprocess(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    num_thing_classes: int,
    num_stuff_classes: int,
    padded_size: Sequence[int],
    image_size: Sequence[int],
    output_size: Sequence[int],
    options: InferenceOptions,
    mask_upsample: int = 2,
) -> ImageResult:
    """Final results of one image from the last round.

    Args:
        class_logits: (N + S, T + S).
        mask_logits: (N + S, h, w) as the round gave them.
        num_thing_classes, num_stuff_classes: T and S.
        padded_size: (height, width) of the padded batch.
        image_size: (height, width) of the image in it.
        output_size: (height, width) of the original image.
        options: what to compute.
        mask_upsample: bilinear enlargement of the logits before the sigmoid.
    """
    resizer = MaskResizer(
        grid_size=[n * mask_upsample for n in mask_logits.shape[-2:]],
        padded_size=padded_size,
        image_size=image_size,
        output_size=output_size,
        device=mask_logits.device,
    )
    size = resizer.output_size
    num_things = len(mask_logits) - num_stuff_classes
    class_scores = class_logits.float().sigmoid()
    scores, labels = kernel_scores(
        class_scores, num_things=num_things, num_thing_classes=num_thing_classes
    )

    instances = fusion = semantic = None
    if options.instance:
        instances = InstanceSelection(
            class_scores[:num_things, :num_thing_classes],
            top_k=options.top_k,
            score_threshold=options.score_threshold,
            size=size,
            mask_threshold=options.mask_threshold,
        )
    if options.panoptic:
        fusion = PanopticFusion(
            scores,
            labels,
            num_thing_classes=num_thing_classes,
            size=size,
            thing_threshold=options.thing_threshold,
            overlap_threshold=options.overlap_threshold,
        )
    if options.semantic:
        semantic = SemanticScores(
            scores, labels, num_classes=num_thing_classes + num_stuff_classes, size=size
        )
    consumers = [c for c in (instances, fusion, semantic) if c is not None]
    everything = fusion is not None or semantic is not None
    kernels = range(len(mask_logits)) if everything else (instances.kernels if instances else [])
    for index, probabilities in resizer.stream(mask_logits, kernels, upsample=mask_upsample):
        for consumer in consumers:
            consumer.add(index, probabilities)
    return ImageResult(
        instances=instances.finish() if instances else None,
        panoptic=fusion.finish() if fusion else None,
        semantic=semantic.finish() if semantic else None,
    )
