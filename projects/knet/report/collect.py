"""Takes the results of a model image by image, and keeps what a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator

from knet.data.label_png import IGNORE_LABEL
from knet.evaluation.panoptic_quality import PanopticStatistics
from knet.report.best_threshold import ScoreCounts
from knet.report.confusion import Confusion
from knet.report.matching import Matching, match_regions, match_segments
from knet.report.segments import Segments, predicted_segments, true_segments
from knet.results.categories import Category
from knet.visualizer import DRAWN_SCORE

__all__ = ["MEASURES", "ReportCollector", "ReportImage"]

# Task → what images are ranked by.
MEASURES = {"panoptic": "PQ", "instance": "F1", "semantic": "mIoU"}

# Instances below are never shown.
_MIN_SCORE = 0.05


@dataclass
class ReportImage:
    """An image, what is true of it and what was found.

    Attributes:
        number: position in the data set, from 0.
        record: of the data set.
        quality: in [0, 1], see ``MEASURES``.
        truth, predicted: instances with a score of at least 0.05 are kept.
        matching: of those that count, see :class:`ReportCollector`; the outcome of a prediction
            that does not count is ``ignored``.
    """

    number: int
    record: Mapping[str, Any]
    quality: float
    truth: Segments
    predicted: Segments
    matching: Matching


class ReportCollector(DatasetEvaluator):
    """Counts the outcomes of all segments, and keeps the best and worst images.

    It runs beside Detectron2's evaluators and adds no result to theirs.

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
        segment_confusion: counts of segments, or None.
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
        if max((category.label for category in categories), default=0) >= IGNORE_LABEL:
            raise ValueError(f"A report shows at most {IGNORE_LABEL} classes.")
        self.task = task
        self.labels = [category.label for category in categories]
        self._things = {category.label for category in categories if category.is_thing}
        self._ignore_label = ignore_label
        self._with_pixels = with_pixels or task == "semantic"
        self.score_threshold = score_threshold
        self._num_images = num_images
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.num_seen = 0
        self.statistics = PanopticStatistics()
        self.segment_confusion = None if self.task == "semantic" else Confusion(self.labels)
        self.pixel_confusion = Confusion(self.labels) if self._with_pixels else None
        self.score_counts = ScoreCounts(self._things)
        self._kept: list[ReportImage] = []

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Take the results of images.

        Args:
            inputs: the records of the data set.
            outputs: of the model, for each record; not changed.

        Raises:
            DataError: naming the file of the ground truth and what is wrong.
        """
        for record, output in zip(inputs, outputs):
            regions = self._count_pixels(record, output) if self._with_pixels else None
            if self.task == "semantic":
                assert regions is not None
                image = self._semantic(record, *regions)
            else:
                image = self._matched(record, output)
            self.num_seen += 1
            self._keep(image)

    def evaluate(self) -> dict[str, Any]:
        """Nothing: scores are the business of the evaluators beside."""
        return {}

    @property
    def images(self) -> list[ReportImage]:
        """The images kept, from the worst to the best."""
        self._prune()
        return list(self._kept)

    def _matched(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> ReportImage:
        predicted = predicted_segments(output, self.task, min_score=_MIN_SCORE)
        truth = self._truth(record, predicted.size, self.task)
        counted = predicted
        if self.task == "instance":
            # sorted, so that outcomes keep their position when the rest follows
            segments = sorted(predicted.segments, key=lambda s: -(s.score or 0.0))
            predicted = replace(predicted, segments=segments)
            strong = [s for s in segments if (s.score or 0.0) >= self.score_threshold]
            counted = replace(predicted, segments=strong)
        matching = match_segments(truth, counted)
        everything = matching
        if len(counted.segments) < len(predicted.segments):
            everything = match_segments(truth, predicted)
        self.score_counts.add(truth, predicted, everything)
        self.statistics += matching.statistics
        assert self.segment_confusion is not None
        self.segment_confusion.add_segments(truth, counted, matching)
        if self.task == "panoptic":
            mean = matching.statistics.average(self.labels)
            # nothing to find and nothing found
            quality = mean["pq"] if mean["n"] else 1.0
        else:
            tp, fp, fn = (
                sum(getattr(c, key) for c in matching.statistics.categories.values())
                for key in ("tp", "fp", "fn")
            )
            quality = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0
        matching.ignore_more(len(predicted.segments))
        return ReportImage(self.num_seen, record, quality, truth, predicted, matching)

    def _semantic(
        self, record: Mapping[str, Any], truth: Segments, predicted: Segments
    ) -> ReportImage:
        matching = match_regions(truth, predicted)
        ious = [outcome.iou for outcome in matching.truth]
        ious += [0.0 for o in matching.predicted if o.partner is None and o.status != "ignored"]
        quality = float(np.mean(ious)) if ious else 1.0
        truth, predicted = replace(truth, labels=None), replace(predicted, labels=None)
        return ReportImage(self.num_seen, record, quality, truth, predicted, matching)

    def _count_pixels(
        self, record: Mapping[str, Any], output: Mapping[str, Any]
    ) -> tuple[Segments, Segments]:
        predicted = predicted_segments(output, "semantic", min_score=0.0)
        truth = self._truth(record, predicted.size, "semantic")
        assert self.pixel_confusion is not None
        assert truth.labels is not None and predicted.labels is not None
        self.pixel_confusion.add_pixels(truth.labels, predicted.labels)
        return truth, predicted

    def _truth(self, record: Mapping[str, Any], size: tuple[int, int], task: str) -> Segments:
        return true_segments(
            record,
            size,
            task,
            num_classes=max(self.labels) + 1,
            ignore_label=self._ignore_label,
            things=self._things,
        )

    def _keep(self, image: ReportImage) -> None:
        self._kept.append(image)
        if len(self._kept) > 2 * self._num_images:
            self._prune()

    def _prune(self) -> None:
        self._kept.sort(key=lambda image: (image.quality, image.number))
        surplus = len(self._kept) - self._num_images
        if surplus > 0:
            worst = (self._num_images + 1) // 2
            del self._kept[worst : worst + surplus]
