"""What tells a semantic model from an instance or panoptic one: its targets and its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from knet.classes import ClassIds
from knet.modeling.layers import to_device
from knet.modeling.outputs import RoundOutput
from knet.modeling.postprocess import ImageResult, InferenceOptions, Streaming, postprocess
from knet.modeling.predictions import Frame, MaskPredictions, PixelPredictions
from knet.modeling.targets import (
    IGNORE_LABEL,
    BatchTargets,
    build_targets,
    collate_class_maps,
)


class Task(Protocol):
    """The part of `KNet` that depends on the task.

    `prepare` makes what is needed of the labels of one input dict of Detectron2, in the loader;
    `targets` puts a batch together for the criterion; `predictions` reads one image off the last
    round; `results` brings that to the size wanted, as Detectron2's output dict.
    """

    def prepare(self, x: dict[str, Any]) -> dict[str, Any]: ...

    def targets(
        self,
        batch: Sequence[Mapping[str, Any]],
        padded_size: tuple[int, int],
        device: torch.device,
    ) -> Any: ...

    def predictions(self, last: RoundOutput, index: int, frame: Frame) -> Any: ...

    def results(self, predictions: Any, output_size: Sequence[int]) -> dict[str, Any]: ...


class MaskTask:
    """Instance and panoptic segmentation.

    Args:
        class_ids: the data set's ids of K-Net's classes.
        options: which results are wanted, and their thresholds; as published by default.
        streaming: how they are computed.
        mask_upsample: factor between the heads' masks and the grid of losses and results. Effect of
            masks at stride 8 (docs/ABLATION.md): nuclei -7.6 AP, photos -0.8 PQ; at 2:
            scenes -29.9 PQ.
        loss_stride: stride of that grid.
    """

    def __init__(
        self,
        *,
        class_ids: ClassIds,
        options: InferenceOptions | None = None,
        streaming: Streaming | None = None,
        mask_upsample: int = 2,
        loss_stride: int = 4,
    ) -> None:
        self.class_ids = class_ids
        self.options = options or InferenceOptions()
        self.mask_upsample = mask_upsample
        self.loss_stride = loss_stride
        self.streaming = streaming or Streaming()
        # on the CPU, where the loader's labels are
        self._thing_ids = torch.tensor(class_ids.things, dtype=torch.int64)
        self._stuff_ids = torch.tensor(class_ids.stuff, dtype=torch.int64)

    def prepare(self, x: dict[str, Any]) -> dict[str, Any]:
        """An input dict with small `targets` in place of the labels that they are made of.

        Loaders do it in their workers; `targets` does it for those that come as they are.
        """
        _require(x, "instances")
        if len(self.class_ids.stuff):
            _require(x, "sem_seg")
        # ids of the data set -> K-Net's thing classes; ids are sorted
        labels = torch.searchsorted(self._thing_ids, x["instances"].gt_classes.cpu())
        targets = build_targets(
            thing_labels=labels,
            thing_masks=x["instances"].gt_masks.tensor.cpu(),
            sem_seg=x["sem_seg"].cpu() if len(self.class_ids.stuff) else None,
            stuff_ids=self._stuff_ids,
            stride=self.loss_stride,
        )
        rest = {key: value for key, value in x.items() if key not in ("instances", "sem_seg")}
        return {**rest, "targets": targets}

    def targets(
        self,
        batch: Sequence[Mapping[str, Any]],
        padded_size: tuple[int, int],
        device: torch.device,
    ) -> BatchTargets:
        """Soft masks and labels of things and stuff."""
        images = [x["targets"] if "targets" in x else self.prepare({**x})["targets"] for x in batch]
        size = [length // self.loss_stride for length in padded_size]
        return BatchTargets.collate(images, device, size)

    def predictions(self, last: RoundOutput, index: int, frame: Frame) -> MaskPredictions:
        """Class scores and masks of one image."""
        assert last.class_logits is not None
        return MaskPredictions(
            class_scores=last.class_logits[index].float().sigmoid(),
            masks=last.masks[index],
            frame=frame,
            upsample=self.mask_upsample,
            kernels=last.kernels[index],
        )

    def results(self, predictions: MaskPredictions, output_size: Sequence[int]) -> dict[str, Any]:
        """`instances`, `panoptic_seg` and `sem_seg`, with the data set's ids."""
        return self.to_detectron2(self.image_result(predictions, output_size))

    def image_result(self, predictions: MaskPredictions, output_size: Sequence[int]) -> ImageResult:
        """The same with K-Net's classes, and the kernel of every object."""
        return postprocess(
            predictions,
            num_thing_classes=len(self.class_ids.things),
            num_stuff_classes=len(self.class_ids.stuff),
            output_size=output_size,
            options=self.options,
            streaming=self.streaming,
        )

    def to_detectron2(self, result: ImageResult) -> dict[str, Any]:
        """An image's results with the data set's ids, in Detectron2's containers."""
        things, stuff = self.class_ids.things, self.class_ids.stuff
        labels = [*things, *stuff]
        out: dict[str, Any] = {}
        if result.instances is not None:
            found = result.instances
            instances = Instances(tuple(found.masks.shape[-2:]))
            instances.pred_masks = found.masks
            instances.pred_boxes = Boxes(found.boxes)
            instances.scores = found.scores
            instances.pred_classes = to_device(self._thing_ids, found.labels.device)[found.labels]
            out["instances"] = instances
        if result.panoptic is not None:
            id_map, segments = result.panoptic
            info = [
                {
                    "id": s.id,
                    "isthing": s.is_thing,
                    "category_id": labels[s.label],
                    "score": s.score,
                    "area": s.area,
                }
                for s in segments
            ]
            out["panoptic_seg"] = (id_map, info)
        if result.semantic is not None:
            out["sem_seg"] = reorder(result.semantic, labels)
        return out


class SemanticTask:
    """Semantic segmentation: every pixel gets one of K classes."""

    def prepare(self, x: dict[str, Any]) -> dict[str, Any]:
        """The input dict with a byte a pixel of its class map.

        Raises:
            ValueError: a label that is none of 0 to 255.
        """
        _require(x, "sem_seg")
        labels = x["sem_seg"].cpu()
        if labels.dtype != torch.uint8:
            low, high = (int(side) for side in labels.aminmax())
            if low < 0 or high > IGNORE_LABEL:
                raise ValueError(
                    f"{x.get('file_name', 'an image')}: labels from {low} to {high} in its class "
                    f"map; they must be 0 to {IGNORE_LABEL}, which means that there is none"
                )
        return {**x, "sem_seg": labels.to(torch.uint8)}

    def targets(
        self,
        batch: Sequence[Mapping[str, Any]],
        padded_size: tuple[int, int],
        device: torch.device,
    ) -> Tensor:
        """The padded class maps."""
        maps = [self.prepare({**x})["sem_seg"] for x in batch]
        return collate_class_maps(maps, padded_size, device)

    def predictions(self, last: RoundOutput, index: int, frame: Frame) -> PixelPredictions:
        """Class logits of one image."""
        return PixelPredictions(last.masks[index], frame)

    def results(self, predictions: PixelPredictions, output_size: Sequence[int]) -> dict[str, Any]:
        """`sem_seg`: (K, H, W) probabilities."""
        return {"sem_seg": predictions.probabilities(output_size)}


def _require(x: Mapping[str, Any], key: str) -> None:
    if key not in x:
        raise ValueError(
            f"{x.get('file_name', 'an image')}: training needs {key!r}, which the data set does "
            "not give: see INPUT.KNET_TARGETS and the annotations"
        )


def reorder(scores: Tensor, labels: Sequence[int]) -> Tensor:
    """Maps (K, H, W) of K-Net's classes at the places of their labels, the rest 0."""
    if list(labels) == list(range(len(labels))):
        return scores
    ordered = scores.new_zeros((max(labels) + 1, *scores.shape[1:]))
    ordered[list(labels)] = scores
    return ordered
