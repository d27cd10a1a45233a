"""A model with everything before and behind it, as modules that can be traced.

The image goes in as a decoder and a resize give it; masks, maps and tables come out at the size
that is asked for. Every rule is that of `knet.inference`; only the loops differ: here they run
over a fixed number of kernels, as a graph knows no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knet.export.lowering import exportable_copy
from knet.inference.instances import best_pairs, mask_boxes
from knet.inference.panoptic import PanopticFusion, kernel_scores
from knet.inference.postprocess import InferenceOptions
from knet.inference.predictions import Frame, MaskPredictions
from knet.inference.resize import composed_matrix
from knet.modeling.kernel_update import RoundOutput

# maps held at output size at a time: a bound on memory, unrolled in the graph
_CHUNK = 16


class ImageGraph(nn.Module):
    """What all graphs begin with: images in, the last round out.

    Args:
        model: `KNet`, of which the parts that inference needs are copied.
        onnx: whether every operator must exist in ONNX.
        channel_order: the model's, "RGB" or "BGR"; the graph takes RGB.
        half: compute in float16 under autocast; sums over pixels and results stay float32.

    Raises:
        ValueError: see `exportable_copy`; another channel order.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: Any, *, onnx: bool, channel_order: str, half: bool = False) -> None:
        super().__init__()
        if channel_order not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {channel_order!r}; RGB and BGR can be exported")
        self.backbone = exportable_copy(model.backbone, "backbone", onnx=onnx)
        self.heads = exportable_copy(model.heads, "heads", onnx=onnx)
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        self.in_features = list(model.in_features)
        self.size_divisibility = max(model.size_divisibility, 1)
        self.task = model.task
        self.reverse_channels = channel_order == "BGR"
        self.half_precision = half

    def last_round(self, images: Tensor) -> tuple[RoundOutput, Frame]:
        """(B, 3, H, W), 0 to 255 -> the last round and the sizes."""
        if self.reverse_channels:
            images = images.flip(1)
        x = (images - self.pixel_mean) / self.pixel_std
        height, width = images.shape[-2:]
        divisor = self.size_divisibility
        padded = tuple((size + divisor - 1) // divisor * divisor for size in (height, width))
        x = F.pad(x, (0, padded[1] - width, 0, padded[0] - height))
        if self.half_precision:
            with torch.autocast(x.device.type, dtype=torch.float16):
                last = self._rounds(x)
        else:
            last = self._rounds(x)
        return last, Frame(padded, (height, width))

    def _rounds(self, x: Tensor) -> RoundOutput:
        features = self.backbone(x)
        return self.heads([features[name] for name in self.in_features])[1][-1]


class RawGraph(ImageGraph):
    """Images in, the last round's logits out; arguments as of `ImageGraph`."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits of a batch.

        Args:
            image: (B, 3, H, W) RGB, 0 to 255, any real type.

        Returns:
            `mask_logits` (B, M, h, w) over the padded batch and, but for semantic models,
            `class_logits` (B, M, K), both float32.
        """
        last, _ = self.last_round(image)
        outputs = {"mask_logits": last.masks.float()}
        if last.class_logits is not None:
            outputs["class_logits"] = last.class_logits.float()
        return outputs


class MaskGraph(ImageGraph):
    """Instance and panoptic models: one image in, all results out.

    Args:
        model, onnx, channel_order, half: as of `ImageGraph`.
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
        probabilities: bool = False,
    ) -> None:
        super().__init__(model, onnx=onnx, channel_order=channel_order, half=half)
        self.options: InferenceOptions = self.task.options
        things, stuff = self.task.class_ids.things, self.task.class_ids.stuff
        self.num_things, self.num_stuff = len(things), len(stuff)
        self.probabilities = probabilities and self.options.semantic
        self.register_buffer("class_ids", torch.tensor([*things, *stuff]), persistent=False)

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
        size = _size(output_size)
        scores, labels = kernel_scores(
            predictions.class_scores, num_things=first_stuff, num_thing_classes=self.num_things
        )
        fusions: dict[str, PanopticFusion] = {}
        if options.panoptic:
            fusions["panoptic"] = options.fusion(
                scores,
                labels,
                num_thing_classes=self.num_things,
                num_stuff_classes=self.num_stuff,
                size=size,
            )
        if options.semantic:  # its classes are those that win the pixels, chosen or not
            fusions["semantic"] = PanopticFusion(
                scores, labels, num_thing_classes=self.num_things, size=size
            )
        wants_masks = options.instance and self.num_things > 0
        masks, values = [], []
        kernels = range(num_kernels if fusions else first_stuff)
        for chunk, probabilities in _resized(predictions.probabilities, kernels, frame, size,
                                             predictions.grid_size):  # fmt: skip
            for fusion in fusions.values():
                fusion.add(chunk, probabilities)
            if wants_masks and chunk[0] < first_stuff:
                masks.append(probabilities[: first_stuff - chunk[0]] > options.mask_threshold)
            if self.probabilities:
                values.append(probabilities * scores[chunk][:, None, None])
        outputs: dict[str, Tensor] = {}
        if "panoptic" in fusions:
            outputs.update(self._panoptic(fusions["panoptic"]))
        if wants_masks:
            class_scores = predictions.class_scores[:first_stuff, : self.num_things]
            outputs.update(self._instances(class_scores, torch.cat(masks)))
        if "semantic" in fusions:
            fusion = fusions["semantic"]
            outputs["semantic_classes"] = self.class_ids[labels][fusion.winner()].int()
            outputs["semantic_scores"] = fusion.best
        if self.probabilities:
            outputs["semantic_probabilities"] = self._class_scores(torch.cat(values), labels)
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

    def _instances(self, class_scores: Tensor, masks: Tensor) -> dict[str, Tensor]:
        options = self.options
        classes = options.chosen_things(self.num_things, class_scores.device)
        scores, labels, kernels = best_pairs(class_scores, top_k=options.top_k, classes=classes)
        boxes = mask_boxes(masks)
        kept = None
        if options.score_threshold > 0:
            kept = scores >= options.score_threshold
        if options.min_area > 0:
            large = masks.flatten(1).sum(1)[kernels] >= options.min_area
            kept = large if kept is None else kept & large
        if kept is not None:
            scores, labels, kernels = scores[kept], labels[kept], kernels[kept]
        return {
            "instance_scores": scores,
            "instance_classes": self.class_ids[labels],
            "instance_masks": masks[kernels],
            "instance_boxes": boxes[kernels],
        }

    def _class_scores(self, values: Tensor, labels: Tensor) -> Tensor:
        """(M, H, W) scores of kernels -> the highest of each class, (K, H, W)."""
        count = int(max(self.task.class_ids.things + self.task.class_ids.stuff)) + 1
        index = self.class_ids[labels][:, None, None].expand_as(values)
        empty = values.new_zeros((count, *values.shape[1:]))
        return empty.scatter_reduce(0, index, values, "amax")


class SemanticGraph(ImageGraph):
    """Semantic models: one image in, its class map out.

    Args:
        model, onnx, channel_order, half: as of `ImageGraph`.
        probabilities: also give the probabilities of all classes.
    """

    def __init__(
        self,
        model: Any,
        *,
        onnx: bool,
        channel_order: str,
        half: bool = False,
        probabilities: bool = False,
    ) -> None:
        super().__init__(model, onnx=onnx, channel_order=channel_order, half=half)
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
        size = _size(output_size)
        chunks = _resized(
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


def _size(output_size: Tensor) -> tuple[int, int]:
    height, width = (cast(int, side.item()) for side in (output_size[0], output_size[1]))
    for side in (height, width):
        torch._check(side >= 1)
    return height, width


def _resized(
    maps: Any, kernels: range, frame: Frame, size: Sequence[int], grid_size: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """As `MaskResizer.stream`, in chunks of a fixed number and for sizes that are not known."""
    rows, columns = (
        composed_matrix(*axis) for axis in zip(grid_size, frame.padded_size, frame.image_size, size)
    )
    for start in range(kernels.start, kernels.stop, _CHUNK):
        chunk = list(range(start, min(start + _CHUNK, kernels.stop)))
        part = maps(chunk)
        yield chunk, rows.to(part.device) @ (part @ columns.T.to(part.device))
