"""Thresholds of panoptic segments that give the highest panoptic quality on labelled images.

Each image is predicted once and its kernels compete for the pixels once: neither depends on a
threshold. Which kernels become segments does, and under each pair of thresholds that is judged by
the overlaps of kernels and true segments, without another look at the pixels.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils.logger import log_every_n_seconds
from tabulate import tabulate

from knet.data.panoptic_png import read_panoptic_png
from knet.modeling.postprocess import compete
from knet.modeling.predictions import MaskPredictions
from knet.modeling.task import MaskTask

from .panoptic import PanopticEvaluator
from .panoptic_quality import PanopticStatistics, count_overlaps, match_segments

__all__ = ["Calibration", "ThresholdSearch", "calibrate"]

_THINGS = [k / 20 for k in range(20)]
_OVERLAPS = [k / 10 for k in range(2, 10)]
# as of the config: THING_THRESH and OVERLAP_THRESH
Pair = tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """Panoptic quality, in percent, by thresholds.

    Attributes:
        dataset: that it was counted on.
        quality: by (THING_THRESH, OVERLAP_THRESH).
        given: the model's thresholds, which are among them.
    """

    dataset: str
    quality: Mapping[Pair, float]
    given: Pair

    @property
    def best(self) -> Pair:
        """Those of the highest quality; of several such, the nearest to the model's."""

        def rank(pair: Pair) -> tuple[float, float]:
            far = sum(abs(ours - theirs) for ours, theirs in zip(pair, self.given))
            return -round(self.quality[pair], 9), far

        return min(self.quality, key=rank)

    def describe(self) -> str:
        """A table of them all, and the keys to set."""
        things, overlaps = (sorted(set(values)) for values in zip(*self.quality))
        rows = [[f"{t:g}", *(self.quality[t, o] for o in overlaps)] for t in things]
        table = tabulate(
            rows, ["THING \\ OVERLAP", *(f"{o:g}" for o in overlaps)], "simple", floatfmt=".2f",
            disable_numparse=[0],
        )  # fmt: skip
        thing, overlap = self.best
        return (
            f"PQ on {self.dataset} by thresholds:\n{table}\n\n"
            f"{self.quality[self.given]:.2f} under the model's {self.given[0]:g} and "
            f"{self.given[1]:g}, {self.quality[self.best]:.2f} at best, with\n"
            f"    MODEL.KNET.TEST.THING_THRESH {thing} MODEL.KNET.TEST.OVERLAP_THRESH {overlap}\n"
            "Thresholds are fitted to these images: report scores on others"
        )


class ThresholdSearch(PanopticEvaluator):
    """Counts the segments of each pair of thresholds, image by image, in one process.

    Args:
        dataset_name: as of `PanopticEvaluator`.
        task: of the model, with the classes and all other options.
        thing_thresholds, overlap_thresholds: to try, beside the model's own.

    Raises:
        ValueError: the data set has no panoptic annotations, or the model no panoptic results.
    """

    def __init__(
        self,
        dataset_name: str,
        task: MaskTask,
        *,
        thing_thresholds: Sequence[float] = _THINGS,
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
        self._given = options.thing_threshold, options.overlap_threshold
        self._totals = {
            (thing, overlap): PanopticStatistics()
            for thing in sorted({*thing_thresholds, self._given[0]})
            for overlap in sorted({*overlap_thresholds, self._given[1]})
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
        fusion = compete(
            predictions,
            num_thing_classes=len(ids.things),
            num_stuff_classes=len(ids.stuff),
            output_size=size,
            options=self._task.options,
            streaming=self._task.streaming,
        )
        winner = fusion.winner()
        won = (winner + 1).cpu().numpy()  # by kernel k as k + 1, as 0 is nobody
        overlap = count_overlaps(read_panoptic_png(path, f"Image {image_id}", won.shape), won)
        truth = {segment["id"]: segment for segment in segments}
        decisive = fusion.decisive(winner)
        counted: dict[tuple[int, ...], PanopticStatistics] = {}
        for pair, total in self._totals.items():
            fusion.thing_threshold, fusion.overlap_threshold = pair
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
        quality = {
            pair: 100 * total.summary(self._categories)["All"]["pq"]
            for pair, total in self._totals.items()
        }
        return Calibration(self._dataset, quality, self._given)


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
