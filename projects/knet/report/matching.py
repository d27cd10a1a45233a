"""Which predicted segment is which true one, by the rules of the panoptic quality."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as mask_util

from knet.evaluation.panoptic_quality import PanopticStatistics
from knet.report.segments import Rle, Segment, Segments

__all__ = [
    "CONFUSED",
    "FALSE",
    "IGNORED",
    "MATCH",
    "MISSED",
    "Matching",
    "Outcome",
    "match_regions",
    "match_segments",
]

# What can be said of a segment.
MATCH, CONFUSED, MISSED, FALSE, IGNORED = "match", "confused", "missed", "false", "ignored"

_IOU = 0.5


@dataclass
class Outcome:
    """What became of a segment.

    Attributes:
        status: ``match``: found, with its class; ``confused``: found as another class;
            ``missed``: not found; ``false``: there is no such thing; ``ignored``: a crowd, or a
            prediction mostly on crowd or void. Found means an IoU above 0.5.
        iou: with the segment ``partner``; 0 without.
        partner: that segment's position, or None.
    """

    status: str
    iou: float = 0.0
    partner: int | None = None


@dataclass
class Matching:
    """The outcome of all segments of an image, in their order.

    Attributes:
        truth, predicted: one outcome a segment.
        statistics: true positives, IoUs, false positives and negatives a class.
    """

    truth: list[Outcome]
    predicted: list[Outcome]
    statistics: PanopticStatistics = field(default_factory=PanopticStatistics)

    def ignore_more(self, number: int) -> None:
        """Add ignored predictions until there are ``number`` of them."""
        self.predicted += [Outcome(IGNORED) for _ in range(number - len(self.predicted))]


def match_segments(truth: Segments, predicted: Segments) -> Matching:
    """Match panoptic segments or instances.

    A prediction and a true segment can match if their IoU, without the prediction's pixels on
    void, is above 0.5. Predictions choose by descending score, first within their class: these
    matches are the true positives. What is left over is matched in the same way whatever its
    class, which tells a confusion from a miss. Segments of a panoptic image cannot overlap, so
    the order is of no consequence there, and the counts are those of the panoptic quality.
    """
    true, found = truth.segments, predicted.segments
    matching = Matching(
        [Outcome(IGNORED if s.is_crowd else MISSED) for s in true],
        [Outcome(FALSE) for _ in found],
    )
    shared = _intersections(found, [s.rle for s in true])
    on_void = _intersections(found, [] if truth.void is None else [truth.void]).sum(1)
    area = np.array([s.area for s in found], float)
    union = area[:, None] + [s.area for s in true] - shared - on_void[:, None]
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    iou[:, [s.is_crowd for s in true]] = 0
    same = np.array([[p.label == t.label for t in true] for p in found], bool).reshape(iou.shape)

    order = sorted(range(len(found)), key=lambda k: -(found[k].score or 0.0))
    for status, allowed in ((MATCH, same), (CONFUSED, ~same)):
        free = np.where(allowed, iou, 0.0)
        for k, outcome in enumerate(matching.truth):
            if outcome.partner is not None:
                free[:, k] = 0
        for k in order:
            if matching.predicted[k].partner is not None or not len(true):
                continue
            best = int(free[k].argmax())
            if free[k, best] > _IOU:
                matching.predicted[k] = Outcome(status, float(iou[k, best]), best)
                matching.truth[best] = Outcome(status, float(iou[k, best]), k)
                free[:, best] = 0

    crowds = {s.label: k for k, s in enumerate(true) if s.is_crowd}
    for k, (segment, outcome) in enumerate(zip(found, matching.predicted)):
        crowd = crowds.get(segment.label)
        ignored = on_void[k] + (0 if crowd is None else shared[k, crowd])
        if outcome.status != MATCH and ignored / segment.area > 0.5:
            if outcome.partner is not None:
                matching.truth[outcome.partner] = Outcome(MISSED)
            matching.predicted[k] = Outcome(IGNORED)
    _count(matching, true, found)
    return matching


def match_regions(truth: Segments, predicted: Segments) -> Matching:
    """Match the regions of semantic maps: each class with itself, pixels of void left out.

    A region with an IoU of at most 0.5 is ``missed`` or ``false``, and keeps its IoU.
    """
    true, found = truth.segments, predicted.segments
    matching = Matching([Outcome(MISSED) for _ in true], [Outcome(FALSE) for _ in found])
    shared = _intersections(found, [s.rle for s in true])
    on_void = _intersections(found, [] if truth.void is None else [truth.void]).sum(1)
    of_label = {s.label: k for k, s in enumerate(true)}
    for k, segment in enumerate(found):
        partner = of_label.get(segment.label)
        if on_void[k] == segment.area:
            matching.predicted[k] = Outcome(IGNORED)
        elif partner is not None and shared[k, partner] > 0:
            union = segment.area + true[partner].area - shared[k, partner] - on_void[k]
            iou = float(shared[k, partner] / union)
            matching.predicted[k] = Outcome(MATCH if iou > _IOU else FALSE, iou, partner)
            matching.truth[partner] = Outcome(MATCH if iou > _IOU else MISSED, iou, k)
    return matching


def _intersections(found: list[Segment], masks: list[Rle]) -> np.ndarray:
    """Pixels that each of P segments shares with each of M masks, (P, M) float64."""
    if not found or not masks:
        return np.zeros((len(found), len(masks)))
    # of a crowd, pycocotools gives the share of the prediction's area that it covers
    shares = mask_util.iou([s.rle for s in found], masks, [1] * len(masks))
    return np.rint(np.asarray(shares) * np.array([s.area for s in found])[:, None])


def _count(matching: Matching, true: list[Segment], found: list[Segment]) -> None:
    statistics = matching.statistics
    for segment, outcome in zip(found, matching.predicted):
        if outcome.status == MATCH:
            statistics[segment.label].tp += 1
            statistics[segment.label].iou += outcome.iou
        elif outcome.status != IGNORED:
            statistics[segment.label].fp += 1
    for segment, outcome in zip(true, matching.truth):
        if outcome.status not in (MATCH, IGNORED):
            statistics[segment.label].fn += 1
