"""Ground truth and results of an image as segments, and what becomes of each: found, missed, …"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from knet.data.defects import annotation_name, describe, raise_first
from knet.data.label_png import check_label_size, read_label_png
from knet.data.masks import encode_segmentation, segmentation_errors
from knet.data.panoptic_png import ids_to_rows, read_panoptic_png
from knet.evaluation.panoptic_quality import PanopticStatistics
from knet.modeling.targets import IGNORE_LABEL

Rle = dict[str, Any]

# What can be said of a segment.
MATCH, CONFUSED, MISSED, FALSE, IGNORED = "match", "confused", "missed", "false", "ignored"

_IOU = 0.5


@dataclass(eq=False)
class Segment:
    """One segment.

    Attributes:
        label: contiguous class id.
        rle: compressed RLE of its mask at the picture's size.
        score: of a prediction that has one, in [0, 1].
        is_crowd: a region of many objects, of ground truth only.
        area: pixels.
        status: once matched: ``match``: found, with its class; ``confused``: found as another
            class; ``missed``: not found; ``false``: there is no such thing; ``ignored``: a crowd,
            or a prediction mostly on crowd or void, or one that does not count. Found means an
            IoU above 0.5.
        partner: the segment that it was matched with, or None.
        iou: with the partner; 0 without.
    """

    label: int
    rle: Rle
    score: float | None = None
    is_crowd: bool = False
    area: int = field(init=False)
    status: str = field(init=False, default=IGNORED)
    partner: Segment | None = field(init=False, default=None, repr=False)
    iou: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.area = int(mask_util.area(self.rle))

    def become(self, status: str, partner: Segment | None = None, iou: float = 0.0) -> None:
        """Set what is said of it."""
        self.status, self.partner, self.iou = status, partner, iou


@dataclass
class Segments:
    """All segments of an image.

    Attributes:
        size: (H, W) of the picture.
        segments: those without a pixel are left out.
        void: RLE of the pixels without ground truth, or None where the task has none.
        labels: (H, W) uint8 class of each pixel, 255 for void; semantic maps only.
    """

    size: tuple[int, int]
    segments: list[Segment]
    void: Rle | None = None
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.segments = [segment for segment in self.segments if segment.area]


def true_segments(
    record: Mapping[str, Any],
    size: tuple[int, int],
    task: str,
    *,
    num_classes: int,
    ignore_label: int,
    things: Collection[int],
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
        return Segments(size, _annotated(record, size))
    if task == "semantic" and "sem_seg_file_name" in record:
        path = record["sem_seg_file_name"]
        return _regions(read_label_png(path, size, num_classes, ignore_label, name))
    if "pan_seg_file_name" not in record:
        raise ValueError(
            f"'{record['file_name']}': its record has no ground truth for the task {task!r}"
        )
    path, infos = record["pan_seg_file_name"], record["segments_info"]
    rows = ids_to_rows(read_panoptic_png(path, name, size), infos, path, name)
    check_label_size(rows, size, path, name)
    if task == "semantic":
        table = np.array([IGNORE_LABEL, *(info["category_id"] for info in infos)], np.uint8)
        return _regions(table[rows])
    segments = [
        Segment(info["category_id"], _encode(rows == k), is_crowd=bool(info.get("iscrowd", 0)))
        for k, info in enumerate(infos, start=1)
        if task == "panoptic" or info.get("isthing", info["category_id"] in things)
    ]
    return Segments(size, segments, _encode(rows == 0) if task == "panoptic" else None)


def predicted_segments(output: Mapping[str, Any], task: str, *, min_score: float = 0.0) -> Segments:
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
            Segment(info["category_id"], _encode(ids == info["id"]), info.get("score"))
            for info in infos
        ]
        return Segments(ids.shape, segments)
    if task == "instance":
        found = output["instances"].to("cpu")
        found = found[found.scores >= min_score]
        masks, labels, scores = found.pred_masks, found.pred_classes, found.scores
        segments = [
            Segment(label, _encode(mask.numpy()), score)
            for mask, label, score in zip(masks, labels.tolist(), scores.tolist())
        ]
        return Segments(found.image_size, segments)
    return _regions(output["sem_seg"].argmax(dim=0).cpu().numpy().astype(np.uint8))


def _annotated(record: Mapping[str, Any], size: tuple[int, int]) -> list[Segment]:
    segments = []
    for position, annotation in enumerate(record["annotations"]):
        mask, name = annotation.get("segmentation"), annotation_name(record, position)
        raise_first(segmentation_errors(mask, size, record["file_name"], name))
        crowd = bool(annotation.get("iscrowd", 0))
        rle = encode_segmentation(mask, size)
        segments.append(Segment(annotation["category_id"], rle, is_crowd=crowd))
    return segments


def _regions(labels: np.ndarray) -> Segments:
    """The pixels of each class as one segment."""
    found = [label for label in np.unique(labels).tolist() if label != IGNORE_LABEL]
    segments = [Segment(label, _encode(labels == label)) for label in found]
    return Segments(labels.shape, segments, _encode(labels == IGNORE_LABEL), labels)


def _encode(mask: np.ndarray) -> Rle:
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


def match_segments(truth: Segments, predicted: Segments) -> PanopticStatistics:
    """Match panoptic segments or instances by the rules of the panoptic quality.

    A prediction and a true segment can match if their IoU, without the prediction's pixels on
    void, is above 0.5. Predictions choose by descending score, first within their class: these
    matches are the true positives. What is left over is matched in the same way whatever its
    class, which tells a confusion from a miss. Segments of a panoptic image cannot overlap, so
    the order is of no consequence there, and the counts are those of the panoptic quality.

    Returns:
        True positives, IoUs, false positives and negatives a class; the segments hold the rest.
    """
    true, found = _unmatched(truth, predicted)
    shared, on_void, iou = _overlaps(truth, predicted)
    iou[:, [s.is_crowd for s in true]] = 0
    same = np.array([[p.label == t.label for t in true] for p in found], bool).reshape(iou.shape)

    order = sorted(range(len(found)), key=lambda k: -(found[k].score or 0.0))
    for status, allowed in ((MATCH, same), (CONFUSED, ~same)):
        free = np.where(allowed, iou, 0.0)
        free[:, [s.partner is not None for s in true]] = 0
        for k in order:
            if found[k].partner is not None or not true:
                continue
            best = int(free[k].argmax())
            if free[k, best] > _IOU:
                true[best].become(status, found[k], float(iou[k, best]))
                found[k].become(status, true[best], float(iou[k, best]))
                free[:, best] = 0

    statistics = PanopticStatistics()
    crowds = {s.label: k for k, s in enumerate(true) if s.is_crowd}
    for k, segment in enumerate(found):
        crowd = crowds.get(segment.label)
        ignored = on_void[k] + (0 if crowd is None else shared[k, crowd])
        if segment.status == MATCH:
            statistics[segment.label].add(segment.iou, 1, 0, 0)
        elif ignored / segment.area > 0.5:
            if segment.partner is not None:
                segment.partner.become(MISSED)
            segment.become(IGNORED)
        else:
            statistics[segment.label].fp += 1
    for segment in true:
        if segment.status not in (MATCH, IGNORED):
            statistics[segment.label].fn += 1
    return statistics


def match_regions(truth: Segments, predicted: Segments) -> None:
    """Match the regions of semantic maps: each class with itself, pixels of void left out.

    A region with an IoU of at most 0.5 is ``missed`` or ``false``, and keeps its IoU.
    """
    true, found = _unmatched(truth, predicted)
    _, on_void, ious = _overlaps(truth, predicted)
    of_label = {s.label: k for k, s in enumerate(true)}
    for k, segment in enumerate(found):
        partner = of_label.get(segment.label)
        if on_void[k] == segment.area:
            segment.become(IGNORED)
        elif partner is not None and ious[k, partner] > 0:
            iou = float(ious[k, partner])
            segment.become(MATCH if iou > _IOU else FALSE, true[partner], iou)
            true[partner].become(MATCH if iou > _IOU else MISSED, segment, iou)


def _unmatched(truth: Segments, predicted: Segments) -> tuple[list[Segment], list[Segment]]:
    """The segments of both, as they are before any is found."""
    for segment in truth.segments:
        segment.become(IGNORED if segment.is_crowd else MISSED)
    for segment in predicted.segments:
        segment.become(FALSE)
    return truth.segments, predicted.segments


def _overlaps(truth: Segments, predicted: Segments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of P predictions: pixels shared with T true segments (P, T), and with void (P,); IoU (P, T).

    IoUs leave the prediction's pixels on void out.
    """
    true, found = truth.segments, predicted.segments
    area = np.array([s.area for s in found], float)[:, None]

    def shared_with(masks: list[Rle]) -> np.ndarray:
        if not found or not masks:
            return np.zeros((len(found), len(masks)))
        # of a crowd, pycocotools gives the share of the prediction's area that it covers
        shares = mask_util.iou([s.rle for s in found], masks, [1] * len(masks))
        return np.rint(np.asarray(shares) * area)

    shared = shared_with([s.rle for s in true])
    on_void = shared_with([] if truth.void is None else [truth.void]).sum(1)
    union = area + [s.area for s in true] - shared - on_void[:, None]
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return shared, on_void, iou
