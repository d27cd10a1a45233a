"""Ground truth and results of an image as segments: a class, a mask and perhaps a score."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from knet.data.defects import annotation_name, describe, raise_first
from knet.data.label_png import IGNORE_LABEL, check_label_size, read_label_png
from knet.data.masks import encode_segmentation, segmentation_errors
from knet.data.panoptic_png import ids_to_rows, read_panoptic_png

__all__ = ["Segment", "Segments", "predicted_segments", "true_segments"]

Rle = dict[str, Any]


@dataclass
class Segment:
    """One segment.

    Attributes:
        label: contiguous class id.
        rle: compressed RLE of its mask at the picture's size.
        area: pixels.
        score: of a prediction that has one, in [0, 1].
        is_crowd: a region of many objects, of ground truth only.
    """

    label: int
    rle: Rle
    area: int
    score: float | None = None
    is_crowd: bool = False

    @classmethod
    def from_rle(cls, label: int, rle: Rle, **values: Any) -> Segment:
        """A segment whose area is counted."""
        return cls(int(label), rle, int(mask_util.area(rle)), **values)


@dataclass
class Segments:
    """All segments of an image.

    Attributes:
        size: (H, W) of the picture.
        segments: without empty ones.
        void: RLE of the pixels without ground truth, or None where the task has none.
        labels: (H, W) uint8 class of each pixel, 255 for void; semantic maps only.
    """

    size: tuple[int, int]
    segments: list[Segment]
    void: Rle | None = None
    labels: np.ndarray | None = None


def true_segments(
    record: Mapping[str, Any],
    size: tuple[int, int],
    task: str,
    *,
    num_classes: int,
    ignore_label: int = IGNORE_LABEL,
    things: Collection[int] = (),
) -> Segments:
    """The ground truth of a record.

    Args:
        record: in Detectron2's standard format; the keys read are ``pan_seg_file_name`` and
            ``segments_info``, ``annotations`` or ``sem_seg_file_name``.
        size: (H, W) of the picture.
        task: ``panoptic``, ``instance`` or ``semantic``.
        num_classes: labels of a semantic PNG must be below.
        ignore_label: of semantic PNGs.
        things: labels of the segments that are instances, where these do not say so themselves.

    Raises:
        DataError: naming file and record.
        ValueError: the record has no ground truth for the task.
    """
    name = describe(record)
    if task == "instance" and "annotations" in record:
        return _annotations(record, size)
    if task == "semantic" and "sem_seg_file_name" in record:
        path = record["sem_seg_file_name"]
        return _regions(read_label_png(path, size, num_classes, ignore_label, name))
    if "pan_seg_file_name" not in record:
        raise ValueError(
            f"'{record['file_name']}': its record has no ground truth for the task {task!r}"
        )
    path, infos = record["pan_seg_file_name"], record["segments_info"]
    ids = read_panoptic_png(path, name, size)
    rows = ids_to_rows(ids, infos, path, name)
    check_label_size(rows, size, path, name)
    if task == "semantic":
        table = np.array([IGNORE_LABEL, *(info["category_id"] for info in infos)], np.uint8)
        return _regions(table[rows])
    segments = [
        _of_mask(rows == k, info["category_id"], is_crowd=bool(info.get("iscrowd", 0)))
        for k, info in enumerate(infos, start=1)
        if task == "panoptic" or info.get("isthing", info["category_id"] in things)
    ]
    void = _encode(rows == 0) if task == "panoptic" else None
    return Segments(size, [s for s in segments if s.area], void)


def predicted_segments(output: Mapping[str, Any], task: str, *, min_score: float) -> Segments:
    """The result of an image.

    Args:
        output: of the model; ``panoptic_seg``, ``instances`` or ``sem_seg`` at the picture's size.
        task: ``panoptic``, ``instance`` or ``semantic``.
        min_score: instances with a lower score are left out.
    """
    if task == "panoptic":
        ids, infos = output["panoptic_seg"]
        ids = ids.cpu().numpy()
        segments = [
            _of_mask(ids == info["id"], info["category_id"], score=info.get("score"))
            for info in infos
        ]
        return Segments(ids.shape, [s for s in segments if s.area])
    if task == "instance":
        instances = output["instances"].to("cpu")
        instances = instances[instances.scores >= min_score]
        segments = [
            _of_mask(mask.numpy(), label, score=score)
            for mask, label, score in zip(
                instances.pred_masks, instances.pred_classes.tolist(), instances.scores.tolist()
            )
        ]
        return Segments(instances.image_size, [s for s in segments if s.area])
    return _regions(output["sem_seg"].argmax(dim=0).cpu().numpy().astype(np.uint8))


def _annotations(record: Mapping[str, Any], size: tuple[int, int]) -> Segments:
    segments = []
    for position, annotation in enumerate(record["annotations"]):
        mask = annotation.get("segmentation")
        errors = segmentation_errors(
            mask, size, record["file_name"], annotation_name(record, position)
        )
        raise_first(errors)
        rle = encode_segmentation(mask, size)
        crowd = bool(annotation.get("iscrowd", 0))
        segments.append(Segment.from_rle(annotation["category_id"], rle, is_crowd=crowd))
    return Segments(size, [s for s in segments if s.area])


def _regions(labels: np.ndarray) -> Segments:
    """The pixels of each class as one segment."""
    found: Sequence[int] = np.unique(labels).tolist()
    segments = [_of_mask(labels == k, k) for k in found if k != IGNORE_LABEL]
    return Segments(labels.shape, segments, _encode(labels == IGNORE_LABEL), labels)


def _of_mask(mask: np.ndarray, label: int, **values: Any) -> Segment:
    return Segment.from_rle(label, _encode(mask), **values)


def _encode(mask: np.ndarray) -> Rle:
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
