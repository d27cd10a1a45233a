"""Scores the images of a data set one by one, and keeps what a report shows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from knet.classes import Category
from knet.evaluation.panoptic_quality import PanopticStatistics
from knet.modeling.targets import IGNORE_LABEL
from knet.report.counts import Confusion, ScoreCounts
from knet.report.segments import (
    IGNORED,
    Segments,
    match_regions,
    match_segments,
    predicted_segments,
    true_segments,
)
from knet.visualization import DRAWN_SCORE

# Task → what images are ranked by.
MEASURES = {"panoptic": "PQ", "instance": "F1", "semantic": "mIoU"}

# Task → keys of a record with ground truth for it; one of them is needed.
_TRUTH = {
    "panoptic": ("pan_seg_file_name",),
    "instance": ("annotations", "pan_seg_file_name"),
    "semantic": ("sem_seg_file_name", "pan_seg_file_name"),
}

# Instances below are never shown.
_MIN_SCORE = 0.05


def has_truth(records: Sequence[Mapping[str, Any]], task: str) -> bool:
    """Whether all records have ground truth for a task."""
    return all(any(key in record for key in _TRUTH[task]) for record in records)


def choose_task(
    cfg: CfgNode, records: Sequence[Mapping[str, Any]], wanted: str | None = None
) -> str:
    """The task whose results a report shows image by image.

    Args:
        cfg: ``MODEL.KNET.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON`` tell what there is.
        records: of the data set.
        wanted: by the user; None takes the richest that has results and ground truth.

    Raises:
        ValueError: there are no results, or no ground truth, for it.
    """
    given = [task for task in MEASURES if cfg.MODEL.KNET.TEST[f"{task.upper()}_ON"]]
    judged = [task for task in given if has_truth(records, task)]
    if wanted is None:
        if not judged:
            raise ValueError(
                f"the results are {' and '.join(given) or 'none'}, and the data set has no "
                "ground truth for them"
            )
        return judged[0]
    if wanted not in given:
        raise ValueError(f"--task {wanted}: there are results for {' and '.join(given)} only")
    if wanted not in judged:
        raise ValueError(f"--task {wanted}: the data set has no ground truth for it")
    return wanted


@dataclass
class ReportImage:
    """An image, what is true of it and what was found.

    Attributes:
        number: position in the data set, from 0.
        record: of the data set.
        quality: in [0, 1], see ``MEASURES``.
        truth, predicted: matched; instances with a score of at least 0.05 are kept.
    """

    number: int
    record: Mapping[str, Any]
    quality: float
    truth: Segments
    predicted: Segments


class ReportCollector:
    """Counts the outcomes of all segments, and keeps the best and worst images.

    Args:
        task: whose results are matched with the ground truth, ranked and shown: ``panoptic``,
            ``instance`` or ``semantic``.
        categories: the model's classes.
        ignore_label: of semantic label PNGs.
        with_pixels: also count which class the pixels are taken for; needs ``sem_seg``. Always
            done for the task ``semantic``.
        score_threshold: instances with a lower score do not count in matches and ``F1``.
        num_images: how many to keep, half of them the worst, half the best.

    Attributes:
        num_seen: images so far.
        statistics: true positives, false ones and misses a label; not for the task ``semantic``.
        segment_confusion: counts of segments; none for the task ``semantic``.
        pixel_confusion: counts of pixels, or None.
        score_counts: right and wrong things by score, whatever ``score_threshold`` is.
    """

    def __init__(
        self,
        *,
        task: str,
        categories: Sequence[Category],
        ignore_label: int = IGNORE_LABEL,
        with_pixels: bool = False,
        score_threshold: float = DRAWN_SCORE,
        num_images: int = 100,
    ) -> None:
        if task not in MEASURES:
            raise ValueError(f"Unknown task {task!r}; known are {', '.join(MEASURES)}.")
        if num_images < 1:
            raise ValueError(f"A report shows at least one image, not {num_images}.")
        self.task = task
        self.labels = [category.label for category in categories]
        largest = max(self.labels, default=0)
        if largest >= IGNORE_LABEL:
            raise ValueError(f"A report shows at most {IGNORE_LABEL} classes.")
        things = {category.label for category in categories if category.is_thing}
        self._of_truth: dict[str, Any] = {
            "num_classes": largest + 1,
            "ignore_label": ignore_label,
            "things": things,
        }
        self.score_threshold = score_threshold
        self._num_images = num_images
        self.num_seen = 0
        self.statistics = PanopticStatistics()
        self.segment_confusion = Confusion(categories)
        with_pixels = with_pixels or task == "semantic"
        self.pixel_confusion = Confusion(categories) if with_pixels else None
        self.score_counts = ScoreCounts(things)
        self._kept: list[ReportImage] = []

    def add(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Take the results of an image.

        Args:
            record: of the data set.
            output: of the model; not changed.

        Raises:
            DataError: naming the file of the ground truth and what is wrong.
        """
        if self.pixel_confusion is not None:
            predicted = predicted_segments(output, "semantic")
            truth = true_segments(record, predicted.size, "semantic", **self._of_truth)
            assert truth.labels is not None and predicted.labels is not None
            self.pixel_confusion.add_pixels(truth.labels, predicted.labels)
        if self.task == "semantic":
            truth, predicted = replace(truth, labels=None), replace(predicted, labels=None)
            match_regions(truth, predicted)
            ious = [segment.iou for segment in truth.segments]
            ious += [0.0 for s in predicted.segments if not s.partner and s.status != IGNORED]
            quality = float(np.mean(ious)) if ious else 1.0
        else:
            predicted = predicted_segments(output, self.task, min_score=_MIN_SCORE)
            truth = true_segments(record, predicted.size, self.task, **self._of_truth)
            quality = self._match(truth, predicted)
        self._kept.append(ReportImage(self.num_seen, record, quality, truth, predicted))
        self.num_seen += 1
        if len(self._kept) > 2 * self._num_images:
            self._prune()

    @property
    def images(self) -> list[ReportImage]:
        """The images kept, from the worst to the best."""
        self._prune()
        return list(self._kept)

    def _match(self, truth: Segments, predicted: Segments) -> float:
        """Match and count the segments of an image; returns its quality."""
        statistics = match_segments(truth, predicted)
        self.score_counts.add(truth, predicted)
        if self.task == "instance":
            strong = [s for s in predicted.segments if (s.score or 0.0) >= self.score_threshold]
            if len(strong) < len(predicted.segments):
                for segment in predicted.segments:
                    segment.become(IGNORED)
                statistics = match_segments(truth, replace(predicted, segments=strong))
        self.statistics += statistics
        self.segment_confusion.add_segments(truth, predicted)
        # nothing to find and nothing found is right
        if self.task == "panoptic":
            mean = statistics.average(self.labels)
            return mean["pq"] if mean["n"] else 1.0
        counts = statistics.categories.values()
        right, wrong = sum(2 * c.tp for c in counts), sum(c.fp + c.fn for c in counts)
        return right / (right + wrong) if right + wrong else 1.0

    def _prune(self) -> None:
        self._kept.sort(key=lambda image: (image.quality, image.number))
        surplus = len(self._kept) - self._num_images
        if surplus > 0:
            worst = (self._num_images + 1) // 2
            del self._kept[worst : worst + surplus]
