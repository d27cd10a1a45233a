"""Thresholds of panoptic segments that give the highest panoptic quality on labelled images.

Each image is predicted once and its kernels compete for the pixels once: neither depends on a
threshold. Which kernels become segments does, and under each choice of thresholds that is judged by
the overlaps of kernels and true segments, without another look at the pixels.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils.logger import log_every_n_seconds
from tabulate import tabulate

from knet.data.panoptic_png import read_panoptic_png
from knet.modeling.postprocess import consume
from knet.modeling.predictions import MaskPredictions
from knet.modeling.task import MaskTask

from .panoptic import PanopticEvaluator
from .panoptic_quality import PanopticStatistics, count_overlaps, match_segments

__all__ = ["Calibration", "ThresholdSearch", "calibrate"]

_SCORES = [k / 20 for k in range(20)]
_OVERLAPS = [k / 10 for k in range(2, 10)]


class Thresholds(NamedTuple):
    """MODEL.KNET.TEST.THING_THRESH, STUFF_THRESH and OVERLAP_THRESH."""

    thing: float
    stuff: float
    overlap: float


class Mean(NamedTuple):
    """Of the panoptic qualities of those classes that occur, and how many do."""

    quality: float
    classes: int


@dataclass(frozen=True)
class Calibration:
    """Panoptic quality, in percent, by thresholds.

    Segments of things and of stuff do not depend on each other's thresholds: pixels of a segment
    that is dropped become void, and no other segment gets them.

    Attributes:
        dataset: that it was counted on.
        things, stuff: by the threshold of their scores, and OVERLAP_THRESH.
        given: the model's thresholds, which are among them.
    """

    dataset: str
    things: Mapping[tuple[float, float], Mean]
    stuff: Mapping[tuple[float, float], Mean]
    given: Thresholds

    def quality(self, thresholds: Thresholds) -> float:
        """PQ under these thresholds, which must have been tried."""
        parts = self.things[thresholds.thing, thresholds.overlap], self.stuff[thresholds[1:]]
        return sum(part.quality * part.classes for part in parts) / max(
            1, sum(part.classes for part in parts)
        )

    @property
    def best(self) -> Thresholds:
        """Those of the highest quality; of several such, the nearest to the model's."""
        return self._best(sorted({overlap for _, overlap in self.things}))

    def _best(self, overlaps: Sequence[float]) -> Thresholds:
        def rank(thresholds: Thresholds) -> tuple[float, float]:
            far = sum(abs(ours - theirs) for ours, theirs in zip(thresholds, self.given))
            return -round(self.quality(thresholds), 9), far

        tried = (
            Thresholds(thing, stuff, overlap)
            for thing, overlap in self.things
            if overlap in overlaps
            for stuff, same in self.stuff
            if same == overlap
        )
        return min(tried, key=rank)

    def describe(self) -> str:
        """A table of the best for each OVERLAP_THRESH, and the keys to set."""
        rows = []
        for overlap in sorted({overlap for _, overlap in self.things}):
            best = self._best([overlap])
            parts = self.things[best.thing, overlap], self.stuff[best.stuff, overlap]
            texts = (f"{overlap:g}", f"{best.thing:g}", f"{best.stuff:g}")
            rows.append([*texts, *(part.quality for part in parts), self.quality(best)])
        heads = ["OVERLAP", "THING", "STUFF", "PQ things", "PQ stuff", "PQ"]
        table = tabulate(rows, heads, "simple", floatfmt=".2f", disable_numparse=[0, 1, 2])
        best = self.best
        given = ", ".join(f"{value:g}" for value in self.given)
        names = ("THING_THRESH", "STUFF_THRESH", "OVERLAP_THRESH")
        keys = " ".join(f"MODEL.KNET.TEST.{name} {value}" for name, value in zip(names, best))
        return (
            f"PQ on {self.dataset}, with the best thresholds of scores for each of overlaps:\n"
            f"{table}\n\n"
            f"{self.quality(self.given):.2f} under the model's own ({given} for things, stuff and "
            f"overlaps), {self.quality(best):.2f} at best, with\n    {keys}\n"
            "Thresholds are fitted to these images: report scores on others"
        )


class ThresholdSearch(PanopticEvaluator):
    """Counts the segments under many thresholds, image by image, in one process.

    Args:
        dataset_name: as of `PanopticEvaluator`.
        task: of the model, with the classes and all other options.
        score_thresholds: to try for things and for stuff, beside the model's own.
        overlap_thresholds: likewise.

    Raises:
        ValueError: the data set has no panoptic annotations, or the model no panoptic results.
    """

    def __init__(
        self,
        dataset_name: str,
        task: MaskTask,
        *,
        score_thresholds: Sequence[float] = _SCORES,
        overlap_thresholds: Sequence[float] = _OVERLAPS,
    ) -> None:
        if not isinstance(task, MaskTask) or not task.options.panoptic:
            raise ValueError("the model gives no panoptic results: see MODEL.KNET.TEST.PANOPTIC_ON")
        if not MetadataCatalog.get(dataset_name).get("panoptic_json"):
            raise ValueError(f"data set {dataset_name!r} has no panoptic annotations: name another")
        super().__init__(dataset_name)
        if not self._truth:
            raise ValueError(f"data set {dataset_name!r} has no annotations: name another")
        self._dataset, self._task = dataset_name, task
        options = task.options
        self._options = replace(options, instance=False, semantic=False)
        self._given = given = Thresholds(
            options.thing_threshold, options.stuff_threshold, options.overlap_threshold
        )
        self._totals = {
            (score, overlap): PanopticStatistics()
            for score in sorted({*score_thresholds, given.thing, given.stuff})
            for overlap in sorted({*overlap_thresholds, given.overlap})
        }
        self._seen: set[Any] = set()

    def add(self, record: Mapping[str, Any], predictions: MaskPredictions) -> None:
        """Count one image.

        Args:
            record: of the data set, with `image_id` and perhaps `height` and `width`.
            predictions: of the model.
        """
        image_id = record["image_id"]
        if image_id not in self._truth or image_id in self._seen:
            return  # not judged; or once more, to fill a batch
        self._seen.add(image_id)
        path, segments = self._truth[image_id]
        height, width = predictions.frame.image_size
        size = record.get("height", height), record.get("width", width)
        ids = self._task.class_ids
        fusion = consume(
            predictions,
            num_thing_classes=len(ids.things),
            num_stuff_classes=len(ids.stuff),
            output_size=size,
            options=self._options,
            streaming=self._task.streaming,
        ).fusion
        assert fusion is not None
        winner = fusion.winner()
        won = (winner + 1).cpu().numpy()  # by kernel k as k + 1, as 0 is nobody
        overlap = count_overlaps(read_panoptic_png(path, f"Image {image_id}", won.shape), won)
        truth = {segment["id"]: segment for segment in segments}
        decisive = fusion.decisive(winner)
        counted: dict[tuple[int, ...], PanopticStatistics] = {}
        for (score, overlap_threshold), total in self._totals.items():
            fusion.thing_threshold = fusion.stuff_threshold = score
            fusion.overlap_threshold = overlap_threshold
            kernels = tuple(fusion.segments(*decisive)[1].tolist())
            if kernels not in counted:
                found = {k + 1: self._record(int(decisive[1][k])) for k in kernels}
                kept: Counter[tuple[int, int]] = Counter()
                for (true_id, kernel), pixels in overlap.items():
                    kept[true_id, kernel if kernel in found else 0] += pixels
                counted[kernels] = match_segments(kept, truth, found)
            total += counted[kernels]

    def _record(self, label: int) -> dict[str, Any]:
        ids = self._task.class_ids
        record = {"category_id": [*ids.things, *ids.stuff][label]}
        return self._convert_category_id({**record, "isthing": label < len(ids.things)})

    def result(self) -> Calibration:
        """The qualities so far.

        Raises:
            ValueError: an image of the ground truth has not been seen.
        """
        missing = len(self._truth.keys() - self._seen)
        if missing:
            raise ValueError(f"{missing} of {len(self._truth)} images have no prediction")
        found = {pair: total.summary(self._categories) for pair, total in self._totals.items()}
        things, stuff = (
            {pair: Mean(100 * s[kind]["pq"], s[kind]["n"]) for pair, s in found.items()}
            for kind in ("Things", "Stuff")
        )
        return Calibration(self._dataset, things, stuff, self._given)


def calibrate(model: Any, batches: Iterable[Any], dataset_name: str) -> Calibration:
    """Find the thresholds of a panoptic model.

    Args:
        model: a `KNet`; it is left in the mode that it is in.
        batches: of the data set's records with `image`, as a test loader of Detectron2 gives them.
        dataset_name: a registered panoptic data set. Its scores under the thresholds found are too
            good: report those of other images.

    Raises:
        ValueError: as of `ThresholdSearch` and its `result`.
    """
    search = ThresholdSearch(dataset_name, model.task)
    with inference_context(model), torch.no_grad():
        for count, batch in enumerate(batches, start=1):
            for record, predictions in zip(batch, model.predict(batch)):
                search.add(record, predictions)
            log_every_n_seconds(logging.INFO, f"{count} batches", n=10, name="knet.evaluation")
    return search.result()
