"""Models with final results, as modules that can be traced.

The image goes in as a decoder and a resize give it; masks, maps and tables come out at the size
that is asked for. Every rule is that of `knet.modeling.postprocess`; only the loops differ: here
they run over a fixed number of kernels, as a graph knows no others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from knet.export.image_graph import ImageGraph, requested_size, resized
from knet.modeling.instances import best_pairs, mask_boxes, ranked
from knet.modeling.panoptic import PanopticFusion, kernel_scores
from knet.modeling.postprocess import InferenceOptions, SemanticScores
from knet.modeling.predictions import MaskPredictions
from knet.modeling.task import reorder


class MaskGraph(ImageGraph):
    """Instance and panoptic models: one image in, all results out.

    Args:
        model, onnx, channel_order, half, least_output: as of `ImageGraph`.
        probabilities: also give the scores of all classes at every pixel.
    """

    class_ids: Tensor

    def __init__(
        self,
        model: Any,
        *,
        onnx: bool,
        channel_order: str,
        half: bool = False,
        least_output: int = 1,
        probabilities: bool = False,
    ) -> None:
        super().__init__(
            model, onnx=onnx, channel_order=channel_order, half=half, least_output=least_output
        )
        self.options: InferenceOptions = self.task.options
        things, stuff = self.task.class_ids.things, self.task.class_ids.stuff
        self.num_things, self.num_stuff = len(things), len(stuff)
        self.probabilities = probabilities and self.options.semantic
        self.labels = [*things, *stuff]
        self.register_buffer("class_ids", torch.tensor(self.labels), persistent=False)

    def forward(self, image: Tensor, output_size: Tensor) -> dict[str, Tensor]:
        """Results of one image.

        Args:
            image: (1, 3, H, W) RGB, 0 to 255, any real type.
            output_size: (2,) int64, height and width wanted of masks and maps.

        Returns:
            `panoptic_ids` (H, W) int32 with 0 for void and the table `segment_ids`,
            `segment_classes`, `segment_isthing`, `segment_scores`, `segment_areas`, (S,) each;
            `instance_scores`, `instance_classes` (k,), `instance_masks` (k, H, W) boolean and
            `instance_boxes` (k, 4), x0 y0 x1 y1; `semantic_classes` (H, W) int32 and
            `semantic_scores` (H, W), with `probabilities` also `semantic_probabilities`
            (K, H, W). Those that the model's options ask for.
        """
        options = self.options
        last, frame = self.last_round(image)
        predictions: MaskPredictions = self.task.predictions(last, 0, frame)
        num_kernels = predictions.masks.shape[0]
        first_stuff = num_kernels - self.num_stuff
        size = requested_size(output_size, self.least_output)
        scores, labels = kernel_scores(
            predictions.class_scores, num_things=first_stuff, num_thing_classes=self.num_things
        )
        fusions: dict[str, PanopticFusion] = {}
        if options.panoptic:
            fusions["panoptic"] = options.fusion(
                scores,
                labels,
                predictions=predictions,
                num_thing_classes=self.num_things,
                num_stuff_classes=self.num_stuff,
                size=size,
            )
        if options.semantic:  # its classes are those that win the pixels, by class scores alone
            fusions["semantic"] = PanopticFusion(
                scores, labels, num_thing_classes=self.num_things, size=size
            )
        wants_masks = options.instance and self.num_things > 0
        semantic = None
        if self.probabilities:
            semantic = SemanticScores(
                scores, labels, num_classes=self.num_things + self.num_stuff, size=size
            )
        masks, areas, sums = [], [], []
        kernels = range(num_kernels if fusions else first_stuff)
        for chunk, probabilities in resized(predictions.probabilities, kernels, frame, size,
                                             predictions.grid_size):  # fmt: skip
            for fusion in fusions.values():
                fusion.add(chunk[0], probabilities)
            if wants_masks and chunk[0] < first_stuff:
                of_things = probabilities[: first_stuff - chunk[0]]
                masks.append(of_things > options.mask_threshold)
                areas.append(masks[-1].flatten(1).sum(1))
                if options.mask_scores:
                    sums.append((of_things * masks[-1]).flatten(1).sum(1))
            if semantic is not None:
                semantic.add(chunk[0], probabilities)
        outputs: dict[str, Tensor] = {}
        if "panoptic" in fusions:
            outputs.update(self._panoptic(fusions["panoptic"]))
        if wants_masks:
            class_scores = predictions.class_scores[:first_stuff, : self.num_things]
            outputs.update(
                self._instances(
                    class_scores,
                    torch.cat(masks),
                    torch.cat(areas),
                    torch.cat(sums) if options.mask_scores else None,
                )
            )
        if "semantic" in fusions:
            fusion = fusions["semantic"]
            outputs["semantic_classes"] = self.class_ids[labels][fusion.winner()].int()
            outputs["semantic_scores"] = fusion.best
        if semantic is not None:
            outputs["semantic_probabilities"] = reorder(semantic.finish(), self.labels)
        return outputs

    def _panoptic(self, fusion: PanopticFusion) -> dict[str, Tensor]:
        winner = fusion.winner()
        areas = fusion.areas(winner)
        ids, kernels = fusion.segments(fusion.scores, fusion.labels, areas, fusion.own_areas)
        labels = fusion.labels[kernels]
        return {
            "panoptic_ids": ids[winner],
            "segment_ids": ids[kernels],
            "segment_classes": self.class_ids[labels],
            "segment_isthing": labels < self.num_things,
            "segment_scores": fusion.scores[kernels],
            "segment_areas": areas[kernels],
        }

    def _instances(
        self, class_scores: Tensor, masks: Tensor, areas: Tensor, sums: Tensor | None
    ) -> dict[str, Tensor]:
        """As `InstanceSelection`; `sums` are of the probabilities inside the masks."""
        options = self.options
        classes = options.chosen_things(self.num_things, class_scores.device)
        scores, labels, kernels = best_pairs(class_scores, top_k=options.top_k, classes=classes)
        scores, order = ranked(
            scores, areas[kernels], None if sums is None else sums[kernels],
            score_threshold=options.score_threshold, min_area=options.min_area,
        )  # fmt: skip
        if order is not None:
            labels, kernels = labels[order], kernels[order]
        return {
            "instance_scores": scores,
            "instance_classes": self.class_ids[labels],
            "instance_masks": masks[kernels],
            "instance_boxes": mask_boxes(masks)[kernels],
        }


class SemanticGraph(ImageGraph):
    """Semantic models: one image in, its class map out.

    Args:
        model, onnx, channel_order, half, least_output: as of `ImageGraph`.
        probabilities: also give the probabilities of all classes.
    """

    def __init__(
        self,
        model: Any,
        *,
        onnx: bool,
        channel_order: str,
        half: bool = False,
        least_output: int = 1,
        probabilities: bool = False,
    ) -> None:
        super().__init__(
            model, onnx=onnx, channel_order=channel_order, half=half, least_output=least_output
        )
        self.probabilities = probabilities

    def forward(self, image: Tensor, output_size: Tensor) -> dict[str, Tensor]:
        """Results of one image.

        Args:
            image, output_size: as of `MaskGraph`.

        Returns:
            `semantic_classes` (H, W) int32 and `semantic_scores` (H, W), the probability of that
            class; with `probabilities` also `semantic_probabilities` (K, H, W).
        """
        last, frame = self.last_round(image)
        logits = last.masks[0].float()
        size = requested_size(output_size, self.least_output)
        chunks = resized(
            lambda chunk: logits[chunk], range(logits.shape[0]), frame, size, logits.shape[-2:]
        )
        if self.probabilities:
            probabilities = torch.cat([part for _, part in chunks]).softmax(dim=0)
            best, classes = probabilities.max(dim=0)
            return {
                "semantic_classes": classes.int(),
                "semantic_scores": best,
                "semantic_probabilities": probabilities,
            }
        # a running maximum and a running sum of exponentials
        _, part = next(chunks)
        best, classes = part.max(dim=0)
        total = (part - best).exp().sum(dim=0)
        for chunk, part in chunks:
            value, index = part.max(dim=0)
            classes = torch.where(value > best, index + chunk[0], classes)
            highest = torch.maximum(best, value)
            total = total * (best - highest).exp() + (part - highest).exp().sum(dim=0)
            best = highest
        return {"semantic_classes": classes.int(), "semantic_scores": 1 / total}
