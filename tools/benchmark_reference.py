"""The published algorithm, written out beside the tests, as one side of the benchmark."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from benchmark_inputs import Material, Workload, load_reference
from benchmark_laps import Laps
from benchmark_sides import Trained, autocast, padded_size
from detectron2.structures import ImageList
from torch import Tensor

from knet.accel.convolutions import use_usual_convolutions


class Reference:
    """Detectron2's backbone as it comes, and the plain heads with a copy of the weights."""

    name = "reference"

    def __init__(self, material: Material, work: Workload) -> None:
        self.plain, self.steps = load_reference("reference"), load_reference("reference_training")
        model, cfg = material.model, material.cfg
        self.work, self.inputs, self.panoptic = work, material.batched_inputs, material.panoptic
        self.backbone = _plain(model.backbone)
        self.heads = _plain(model.heads)
        self.parameters = dict(self.heads.named_parameters())
        self.in_features, self.divisibility = model.in_features, model.size_divisibility
        self.mean, self.std, self.device = model.pixel_mean, model.pixel_std, model.device
        self.ids, self.stride = model.task.class_ids, model.task.loss_stride
        self.with_rank = bool(cfg.MODEL.KNET.LOSS.RANK_WEIGHT)
        self.top_k = cfg.TEST.DETECTIONS_PER_IMAGE
        self.setup = self.plain.Setup(
            len(self.ids.things),
            len(self.ids.stuff),
            norm_groups=cfg.MODEL.KNET.NORM_GROUPS,
            num_heads=cfg.MODEL.KNET.NUM_HEADS,
            num_rounds=cfg.MODEL.KNET.NUM_ROUNDS,
        )
        self._trained: Trained | None = None
        # the reference has the published factors
        for name in self.steps.LOSS_WEIGHTS:
            key = {"cls": "CLASS"}.get(name, name.upper())
            self.steps.LOSS_WEIGHTS[name] = cfg.MODEL.KNET.LOSS[f"{key}_WEIGHT"]
            if name in self.steps.COST_WEIGHTS:
                self.steps.COST_WEIGHTS[name] = cfg.MODEL.KNET.COST[f"{key}_WEIGHT"]

    def _images(self, inputs: Sequence[dict]) -> ImageList:
        images = [(x["image"].to(self.device) - self.mean) / self.std for x in inputs]
        return ImageList.from_tensors(images, self.divisibility)

    def _features(self, images: ImageList) -> list[Tensor]:
        features = self.backbone(images.tensor)
        return [features[name] for name in self.in_features]

    def whole(self, output_size: Sequence[int]) -> Any:
        return self._infer(Laps(), output_size)

    def inference(self, laps: Laps) -> Any:
        return self._infer(laps, self.work.output_size)

    @torch.no_grad()
    def _infer(self, laps: Laps, output_size: Sequence[int]) -> Any:
        with autocast(self.work):
            images = self._images(self.inputs[:1])
            features = self._features(images)
            laps.end("backbone")
            maps = self.plain.neck(self.parameters, self.setup, features)
            laps.end("neck")
            start = self.plain.kernel_head(self.parameters, self.setup, *maps)
            rounds = self.plain.update_rounds(self.parameters, self.setup, start)
            laps.end("heads")
            result = self._results(images, rounds[-1], output_size)
            laps.end("post-processing")
        return result

    @torch.no_grad()
    def predict(self) -> Any:
        with autocast(self.work):
            images = self._images(self.inputs[:1])
            features = self._features(images)
            return images, self.plain.heads(self.parameters, self.setup, features)[1][-1]

    def post_process(self, predictions: Any) -> Any:
        return self._results(*predictions, self.work.output_size)

    @torch.no_grad()
    def _results(self, images: ImageList, last: Any, output_size: Sequence[int]) -> Any:
        sizes = (tuple(images.tensor.shape[-2:]), images.image_sizes[0], tuple(output_size))
        scores, masks = last.class_logits[0].float().sigmoid(), last.masks[0]
        if self.panoptic:
            return self.plain.panoptic(scores, masks, self.setup, sizes)
        return self.plain.instances(scores, masks, sizes, top_k=self.top_k)

    def training(self, laps: Laps) -> dict[str, Tensor]:
        if self._trained is None:
            with torch.no_grad():
                features = self._features(self._images(self.inputs))
            self._trained = Trained(features, list(self.heads.parameters()), fused=False)
        features = self._trained.begin()
        padded = padded_size(self.work.size, self.divisibility)
        things = torch.tensor(self.ids.things)
        laps.restart()
        with autocast(self.work):
            truth = []
            for x in self.inputs:
                labels = torch.searchsorted(things, x["instances"].gt_classes)
                masks = x["instances"].gt_masks.tensor.to(self.device)
                sem_seg = x["sem_seg"].to(self.device) if self.ids.stuff else None
                truth.append(
                    self.steps.ground_truth(
                        labels.to(self.device), masks, sem_seg, self.ids.stuff, padded, self.stride
                    )
                )
            laps.end("targets")
            start, rounds = self.plain.heads(self.parameters, self.setup, features)
            laps.end("forward")
            with laps.timing(self.steps, "match", "matching"):
                losses = self.steps.losses(
                    start, rounds, truth, len(self.ids.things), with_rank=self.with_rank
                )
            laps.end("losses")
        self._trained.finish(losses, laps)
        return losses

    def end_training(self) -> None:
        if self._trained is not None:
            self._trained.end()


def _plain(module: torch.nn.Module) -> torch.nn.Module:
    plain = copy.deepcopy(module)
    use_usual_convolutions(plain)
    return plain.to(memory_format=torch.contiguous_format)
