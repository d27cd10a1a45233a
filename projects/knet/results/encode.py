"""The results of one image as files and tables hold them: PNG bytes, COCO's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from torch import Tensor

from knet.classes import Category
from knet.data.images import png_bytes
from knet.data.panoptic_png import panoptic_colours
from knet.modeling.instances import mask_boxes

__all__ = ["EncodedResults", "ResultEncoder"]


@dataclass(frozen=True)
class EncodedResults:
    """The results of one image; None of the kinds that there are not.

    Attributes:
        size: (H, W) of the image.
        panoptic_png: COCO's panoptic PNG: ids are R + 256 G + 65536 B, 0 is void.
        segments: COCO's ``segments_info``, with the score of each.
        instances: records of COCO's results format, without ``image_id``.
        label_png: labels (not category ids), 8 bit, or 16 bit with more than 255 classes.
    """

    size: tuple[int, int]
    panoptic_png: bytes | None = None
    segments: list[dict[str, Any]] | None = None
    instances: list[dict[str, Any]] | None = None
    label_png: bytes | None = None


class ResultEncoder:
    """Encodes the results of a model.

    Args:
        categories: of the model.
    """

    def __init__(self, categories: Sequence[Category]) -> None:
        self._ids = {(c.is_thing, c.label): c.id for c in categories}

    def __call__(self, results: Mapping[str, Any], name: str) -> EncodedResults:
        """Encode the results of one image.

        Args:
            results: ``panoptic_seg``, ``instances`` and ``sem_seg`` of the model, any of them, at
                the image's size.
            name: of the image, for the message.

        Raises:
            ValueError: no result that can be encoded.
        """
        found: dict[str, Any] = {}
        if "panoptic_seg" in results:
            id_map = results["panoptic_seg"][0].cpu()
            found["size"] = tuple(id_map.shape)
            found["panoptic_png"] = png_bytes(panoptic_colours(id_map.numpy()))
            found["segments"] = self._segments(id_map, results["panoptic_seg"][1])
        if "sem_seg" in results:
            scores = results["sem_seg"]
            found["size"] = tuple(scores.shape[-2:])
            dtype = np.uint8 if len(scores) < 256 else np.uint16  # 255 stands for no label
            found["label_png"] = png_bytes(scores.argmax(dim=0).cpu().numpy().astype(dtype))
        if "instances" in results:
            instances = results["instances"].to("cpu")
            found["size"] = instances.image_size
            found["instances"] = instances_to_coco_json(instances, None)
            for record in found["instances"]:
                del record["image_id"]
                record["category_id"] = self._ids[True, record["category_id"]]
        if not found:
            raise ValueError(f"{name}: no result to write among {sorted(results)}")
        return EncodedResults(**found)

    def _segments(
        self, id_map: Tensor, segments: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        boxes = [mask_boxes((id_map == s["id"])[None])[0].int().tolist() for s in segments]
        return [
            {
                "id": segment["id"],
                "category_id": self._ids[bool(segment["isthing"]), segment["category_id"]],
                "area": segment["area"],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "score": segment["score"],
            }
            for segment, (x0, y0, x1, y1) in zip(segments, boxes)
        ]
