"""One pass over the kernels of an image that yields every result asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from knet.modeling.instances import InstanceResult, InstanceSelection
from knet.modeling.panoptic import PanopticFusion, PanopticSegment, kernel_scores
from knet.modeling.predictions import MaskPredictions


@dataclass(frozen=True)
class InferenceOptions:
    """Which results are wanted, and what is left out of them (published defaults).

    Attributes:
        instance, panoptic, semantic: which results are wanted.
        top_k, score_threshold, mask_threshold, mask_scores: see `InstanceSelection`.
        thing_threshold, stuff_threshold, overlap_threshold: see `PanopticFusion`.
        min_area: instances and panoptic segments of fewer pixels are left out.
        classes: in [0, T + S), the only ones in instances and panoptic segments; None for all.
            Semantic scores keep all classes.
        panoptic_mask_scores: in panoptic fusion, of stuff as of things, the score of a kernel is
            class score * quality ** this, see `MaskPredictions.mask_quality` (Panoptic SegFormer,
            section 3.4, has 2); 0 for the class score alone. Semantic scores keep that. Effect of 1
            (docs/ABLATION.md): scenes -0.7 PQ, photos -0.1 PQ; of 2: scenes -2.3 PQ,
            photos -0.3 PQ.
    """

    instance: bool = True
    panoptic: bool = True
    semantic: bool = True
    top_k: int = 100
    score_threshold: float = 0.0
    mask_threshold: float = 0.5
    thing_threshold: float = 0.3
    stuff_threshold: float = 0.0
    overlap_threshold: float = 0.6
    min_area: int = 0
    classes: tuple[int, ...] | None = None
    mask_scores: bool = False
    panoptic_mask_scores: float = 0.0

    def chosen_kernels(self, labels: Tensor, *, num_classes: int) -> Tensor | None:
        """(M,) boolean: the kernels whose labels are among `classes`; None for all."""
        if self.classes is None:
            return None
        chosen = [c in self.classes for c in range(num_classes)]
        return torch.tensor(chosen, device=labels.device)[labels]

    def chosen_things(self, num_thing_classes: int, device: torch.device) -> Tensor | None:
        """(c,) int64: the thing classes among `classes`; None for all."""
        if self.classes is None:
            return None
        things = [c for c in self.classes if c < num_thing_classes]
        return torch.tensor(things, dtype=torch.int64, device=device)

    def fusion(
        self,
        scores: Tensor,
        labels: Tensor,
        *,
        predictions: MaskPredictions,
        num_thing_classes: int,
        num_stuff_classes: int,
        size: Sequence[int],
        kind: type[PanopticFusion] = PanopticFusion,
    ) -> PanopticFusion:
        """The panoptic fusion that these options ask for; `scores` are those of the classes."""
        if self.panoptic_mask_scores:
            scores = scores * predictions.mask_quality() ** self.panoptic_mask_scores
        return kind(
            scores,
            labels,
            num_thing_classes=num_thing_classes,
            size=size,
            thing_threshold=self.thing_threshold,
            stuff_threshold=self.stuff_threshold,
            overlap_threshold=self.overlap_threshold,
            min_area=self.min_area,
            chosen=self.chosen_kernels(labels, num_classes=num_thing_classes + num_stuff_classes),
        )


@dataclass(frozen=True)
class Streaming:
    """How kernels are brought to the size of the image and fused; changes no result.

    Attributes:
        fusion: `PanopticFusion`, or the same with another inner loop.
        band, chunk_bytes: see `MaskResizer`.
    """

    fusion: type[PanopticFusion] = PanopticFusion
    band: int = 2**13
    chunk_bytes: int = 2**30


class SemanticScores:
    """Per class, the highest score times probability of the kernels that carry its label.

    Its argmax is the label of the kernel that wins the pixel in panoptic fusion by class scores.

    Args:
        scores, labels: (M,) of the kernels.
        num_classes: T + S.
        size: (H, W) of the output.
    """

    def __init__(
        self, scores: Tensor, labels: Tensor, *, num_classes: int, size: Sequence[int]
    ) -> None:
        self.scores, self.labels = scores, labels
        self._map = torch.zeros((num_classes, *size), device=scores.device)

    def add(self, first: int, probabilities: Tensor) -> None:
        """Take (n, H, W) probabilities of the kernels from `first` on into account."""
        part = slice(first, first + probabilities.shape[0])
        values = probabilities * self.scores[part, None, None]
        index = self.labels[part, None, None].expand_as(values)
        self._map.scatter_reduce_(0, index, values, "amax")

    def finish(self) -> Tensor:
        """(T + S, H, W) scores in [0, 1]."""
        return self._map


@dataclass
class ImageResult:
    """Results of one image at its original size; None for what was not asked for.

    Attributes:
        instances: see `InstanceResult`.
        panoptic: id map (H, W) int32 and its segments.
        semantic: (T + S, H, W) scores, or a semantic model's probabilities (K, H, W).
    """

    instances: InstanceResult | None = None
    panoptic: tuple[Tensor, list[PanopticSegment]] | None = None
    semantic: Tensor | None = None


class Consumers(NamedTuple):
    """What each result of an image is made of; None for what was not asked for."""

    instances: InstanceSelection | None = None
    fusion: PanopticFusion | None = None
    semantic: SemanticScores | None = None


@torch.no_grad()
def consume(
    predictions: MaskPredictions,
    *,
    num_thing_classes: int,
    num_stuff_classes: int,
    output_size: Sequence[int],
    options: InferenceOptions,
    streaming: Streaming = Streaming(),
) -> Consumers:
    """All kernels of one image at its size, seen by what makes its results of them.

    Args:
        predictions, num_thing_classes, num_stuff_classes, output_size, options, streaming: as of
            `postprocess`.
    """
    class_scores = predictions.class_scores
    num_things = len(class_scores) - num_stuff_classes
    resizer = predictions.frame.resizer(
        predictions.grid_size,
        output_size,
        class_scores.device,
        band=streaming.band,
        chunk_bytes=streaming.chunk_bytes,
    )
    size = resizer.output_size
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
            min_area=options.min_area,
            classes=options.chosen_things(num_thing_classes, labels.device),
            mask_scores=options.mask_scores,
        )
    if options.panoptic:
        fusion = options.fusion(
            scores,
            labels,
            predictions=predictions,
            num_thing_classes=num_thing_classes,
            num_stuff_classes=num_stuff_classes,
            size=size,
            kind=streaming.fusion,
        )
    if options.semantic:
        semantic = SemanticScores(
            scores, labels, num_classes=num_thing_classes + num_stuff_classes, size=size
        )
    of_all = [c for c in (fusion, semantic) if c is not None]
    kernels = range(len(scores)) if of_all else (instances.kernels if instances else [])
    for index, probabilities in resizer.stream(kernels, predictions.probabilities):
        if instances:
            instances.add(index, probabilities)
        for consumer in of_all:
            consumer.add(index[0], probabilities)
    return Consumers(instances, fusion, semantic)


def postprocess(
    predictions: MaskPredictions,
    *,
    num_thing_classes: int,
    num_stuff_classes: int,
    output_size: Sequence[int],
    options: InferenceOptions,
    streaming: Streaming = Streaming(),
) -> ImageResult:
    """Final results of one image.

    Args:
        predictions: of the last round; the kernels of stuff are the last ones.
        num_thing_classes, num_stuff_classes: T and S.
        output_size: (height, width) of the original image.
        options: what to compute.
        streaming: how.
    """
    instances, fusion, semantic = consume(
        predictions,
        num_thing_classes=num_thing_classes,
        num_stuff_classes=num_stuff_classes,
        output_size=output_size,
        options=options,
        streaming=streaming,
    )
    with torch.no_grad():
        return ImageResult(
            instances=instances.finish() if instances else None,
            panoptic=fusion.finish() if fusion else None,
            semantic=semantic.finish() if semantic else None,
        )
