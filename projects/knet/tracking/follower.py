"""A model on the frames of a video: results whose objects keep their ids."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knet.errors import UserError
from knet.modeling.outputs import CarriedKernels
from knet.modeling.postprocess import ImageResult
from knet.modeling.predictions import MaskPredictions
from knet.modeling.task import MaskTask
from knet.predictor import KNetPredictor
from knet.tracking.memory import Found, LinkOptions, ObjectMemory

__all__ = ["ObjectFollower"]

_GRID = 192  # cells of the longer side, on which overlaps are counted
_TASKS = ("panoptic", "instance")


class ObjectFollower:
    """Finds the objects of frame after frame, and which of them are the same.

    Args:
        predictor: an instance or panoptic model.
        task: "panoptic", or "instance": where objects of these overlap, the better score is in
            front. By default the first that the model gives.
        score_threshold: instances with a lower score are left out; panoptic things have the model's
            own threshold.
        options: of the links.
        carry_kernels: each frame starts from the kernels that found the objects of the one before.

    Raises:
        UserError: the model finds no objects, looks at a picture more than once (TEST.AUG), or,
            with `carry_kernels`, its kernels or masks do not allow for it.
    """

    def __init__(
        self,
        predictor: KNetPredictor,
        *,
        task: str | None = None,
        score_threshold: float = 0.0,
        options: LinkOptions | None = None,
        carry_kernels: bool = False,
    ) -> None:
        self.predictor = predictor
        self.task = _require_task(predictor, task)
        model: Any = predictor.model
        self._model_task: MaskTask = copy.copy(model.task)  # others may use the model as it is
        kinds: dict[str, Any] = {kind: kind == self.task for kind in (*_TASKS, "semantic")}
        self._model_task.options = replace(self._model_task.options, **kinds)
        ids = self._model_task.class_ids
        self._labels = [*ids.things, *ids.stuff]
        knet = predictor.cfg.MODEL.KNET
        if carry_kernels and (knet.KERNEL_PEAKS or knet.RESIDUAL_MASKS):
            raise UserError(
                "this model cannot start from kernels of another picture: they are found anew in "
                "each (MODEL.KNET.KERNEL_PEAKS), or add to masks (RESIDUAL_MASKS)"
            )
        self.score_threshold = score_threshold
        self.carry_kernels = carry_kernels
        self.memory = ObjectMemory(options)
        self._stuff_ids: dict[int, int] = {}
        self._carried: CarriedKernels | None = None

    @torch.no_grad()
    def __call__(self, frame: np.ndarray, number: int) -> dict[str, Any]:
        """The results of a frame.

        Args:
            frame: (H, W, 3) uint8 RGB, all of one size.
            number: of the frame; numbers may be left out, of frames that cannot be read, say.

        Returns:
            `panoptic_seg` as Detectron2 has it: (H, W) int32 ids and the segments' records, whose
            ids are those of objects, the same in all frames; so is the id of a class of stuff. An
            object has the class that it had most so far. Of an instance model there is no stuff,
            and 0 where there is no object.
        """
        prediction = self.predictor.predict(frame, carried=self._carried)
        predictions = prediction.found
        assert isinstance(predictions, MaskPredictions) and predictions.kernels is not None
        result = self._model_task.image_result(predictions, prediction.size)
        id_map, segments = self._segments(result)
        return {"panoptic_seg": self._linked(id_map, segments, predictions.kernels, number)}

    def _segments(self, result: ImageResult) -> tuple[Tensor, list[dict[str, Any]]]:
        """Ids from 1 and records of segments, each with its kernel; labels are K-Net's."""
        if result.panoptic is not None:
            id_map, found = result.panoptic
            return id_map, [vars(segment) for segment in found]
        instances = result.instances
        assert instances is not None
        id_map = instances.masks.new_zeros(instances.masks.shape[-2:], dtype=torch.int32)
        best: dict[int, int] = {}  # of each kernel the best class
        for row, kernel in enumerate(instances.kernels.tolist()):
            if instances.scores[row] >= self.score_threshold:
                best.setdefault(kernel, row)
        for number, row in reversed(list(enumerate(best.values(), start=1))):
            id_map[instances.masks[row]] = number
        areas = torch.bincount(id_map.flatten(), minlength=len(best) + 1).tolist()
        segments = [
            {
                "id": number,
                "label": int(instances.labels[row]),
                "is_thing": True,
                "score": float(instances.scores[row]),
                "area": areas[number],
                "kernel": kernel,
            }
            for number, (kernel, row) in enumerate(best.items(), start=1)
            if areas[number]
        ]
        return id_map, segments

    def _linked(
        self, id_map: Tensor, segments: Sequence[dict[str, Any]], kernels: Tensor, number: int
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        things = [segment for segment in segments if segment["is_thing"]]
        step = -(-max(id_map.shape) // _GRID)
        coarse = id_map[::step, ::step].cpu().numpy()
        found = Found(
            kernels=kernels[[thing["kernel"] for thing in things]].float().cpu().numpy(),
            labels=np.array([thing["label"] for thing in things], np.int64),
            scores=np.array([thing["score"] for thing in things]),
            masks=np.array([coarse == thing["id"] for thing in things]).reshape(-1, *coarse.shape),
        )
        known = iter(self.memory.link(found, number))
        ids, records = [0] * (1 + max((s["id"] for s in segments), default=0)), []
        for segment in segments:
            label = segment["label"]
            if segment["is_thing"]:
                linked = next(known)
                key, label = linked.id, linked.label
            else:
                if label not in self._stuff_ids:
                    self._stuff_ids[label] = self.memory.new_id()
                key = self._stuff_ids[label]
            ids[segment["id"]] = key
            record = {"id": key, "isthing": segment["is_thing"], "category_id": self._labels[label]}
            records.append({**record, "score": segment["score"], "area": segment["area"]})
        if self.carry_kernels:
            places = torch.zeros(len(kernels), dtype=torch.bool, device=kernels.device)
            places[[thing["kernel"] for thing in things]] = True
            self._carried = CarriedKernels(kernels[None], places[None])
        table = torch.tensor(ids, dtype=torch.int32, device=id_map.device)
        return table[id_map.long()], records


def _require_task(predictor: KNetPredictor, task: str | None) -> str:
    test = predictor.cfg.MODEL.KNET.TEST
    given = [kind for kind in _TASKS if test[f"{kind.upper()}_ON"]]
    if predictor.options is None or task == "semantic" or not given:
        raise UserError(
            "semantic maps have no objects to follow: leave --video out, or take --task panoptic "
            "or instance with a model that gives them"
        )
    if task and task not in given:
        key = f"MODEL.KNET.TEST.{task.upper()}_ON"
        raise UserError(f"no objects to follow: the config turns {key} off")
    if predictor.cfg.TEST.AUG.ENABLED:
        raise UserError(
            "objects are followed through one look at each picture: set TEST.AUG.ENABLED False"
        )
    return task or given[0]
