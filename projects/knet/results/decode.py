"""Results that were written, in the form that Detectron2's models give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from torch import Tensor

from knet.classes import Category
from knet.data.coco_file import is_box, is_number
from knet.data.defects import raise_first
from knet.data.masks import segmentation_errors

__all__ = ["ResultDecoder"]


class ResultDecoder:
    """The inverse of `knet.results.encode.ResultEncoder`, once PNGs are pixels.

    Args:
        categories: of the data set, which are those of the results.
    """

    def __init__(self, categories: Sequence[Category]) -> None:
        self._num_labels = max(category.label for category in categories) + 1
        self._labels = {(c.id, c.is_thing): c.label for c in categories}

    def panoptic_seg(
        self, ids: np.ndarray, segments_info: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """``panoptic_seg`` of a model.

        Args:
            ids: (H, W) int32.
            segments_info: COCO's.
            where: the ids come from, for messages.

        Raises:
            ValueError: ids and segments are not the same.
        """
        segments = []
        for info in segments_info:
            is_thing = (info["category_id"], True) in self._labels
            label = self._labels[info["category_id"], is_thing]
            segment = {"id": info["id"], "category_id": label, "isthing": is_thing}
            segments.append({**segment, "score": info.get("score"), "area": info.get("area")})
        listed = Counter(segment["id"] for segment in segments)
        there = Counter(set(np.unique(ids).tolist()) - {0})
        if listed != there:
            odd = min((listed - there) + (there - listed), key=str)
            raise ValueError(
                f"{where}: the segment {odd} is in it {there[odd]} times, in the segments_info "
                f"beside it {listed[odd]} times; write the results anew"
            )
        return torch.as_tensor(ids), segments

    def instances(
        self, found: Sequence[Mapping[str, Any]], size: tuple[int, int], path: str, image: str
    ) -> Instances:
        """``instances`` of a model.

        Args:
            found: records of COCO's results format.
            size: (H, W) of the image.
            path, image: they come from, for messages.

        Raises:
            ValueError: a mask, box or score is none.
        """
        for k, one in enumerate(found):
            where = f"{image}, instance {k + 1} of {len(found)}"
            raise_first(segmentation_errors(one["segmentation"], size, path, where))
            if not is_box(one["bbox"]) or not is_number(one["score"]):
                raise ValueError(
                    f"{path}: {where}: bbox must be four numbers, score a number; they are "
                    f"{one['bbox']!r:.60} and {one['score']!r:.60}"
                )
        masks = [mask_util.decode(one["segmentation"]).astype(bool) for one in found]
        boxes = torch.tensor([one["bbox"] for one in found], dtype=torch.float32).reshape(-1, 4)
        labels = [self._labels[one["category_id"], True] for one in found]
        return Instances(
            size,
            pred_masks=torch.as_tensor(np.array(masks, bool).reshape(-1, *size)),
            pred_boxes=Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)),
            scores=torch.tensor([float(one["score"]) for one in found]),
            pred_classes=torch.tensor(labels, dtype=torch.long),
        )

    def sem_seg(self, labels: np.ndarray, where: str) -> Tensor:
        """``sem_seg`` of a model, (K, H, W): one 1 among 0s a pixel.

        Args:
            labels: (H, W) integers.
            where: they come from, for messages.

        Raises:
            ValueError: they are no map of the labels of the classes.
        """
        if labels.ndim != 2 or int(labels.max()) >= self._num_labels:
            raise ValueError(
                f"{where} is no map of the labels 0 to {self._num_labels - 1}: are these the "
                "predictions of another model?"
            )
        one_hot = torch.zeros(self._num_labels, *labels.shape, dtype=torch.uint8)
        return one_hot.scatter_(0, torch.as_tensor(labels.astype(np.int64))[None], 1)
