"""Panoptic quality of a model's results, counted image by image."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.evaluation.panoptic_evaluation import _print_panoptic_results
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from knet.data.categories import read_categories
from knet.data.coco_file import load_json
from knet.data.derive import read_panoptic
from knet.data.panoptic_png import read_panoptic_png, write_panoptic_png
from knet.errors import first_of

from .panoptic_quality import PanopticStatistics, image_statistics
from .spool import KeptOnDisk, Spool

__all__ = ["PanopticEvaluator"]

logger = logging.getLogger(__name__)

_THREADS = min(4, os.cpu_count() or 1)
_SEGMENT = ("id", "category_id", "iscrowd")  # what counting needs of a record
Row = tuple[int, int, int, int, int]


class PanopticEvaluator(COCOPanopticEvaluator):
    """Detectron2's ``COCOPanopticEvaluator``, with the same results and ``predictions.json``.

    Detectron2's keeps the PNG of every prediction and compares them in one process at the end.
    This one compares an image as soon as it is predicted, in threads of the process that predicted
    it; processes exchange counts. The numbers are those of
    :func:`~knet.evaluation.panoptic_quality.pq_compute`, to the last bit, for any number of
    processes. A kind (things or stuff) without classes has no quality; Detectron2's says 0.

    Memory holds the ids of the images, and predictions of the few that the threads work on. What
    is known of true segments and counted waits on disk.

    Args:
        dataset_name: a data set whose metadata has ``panoptic_json`` and ``panoptic_root``.
        output_dir: where ``predictions.json`` is written, record by record; None writes nothing.
        write_png: also write ``<output_dir>/predictions/<name>.png``, each process on its own
            disk; by default only for data sets without annotations, whose predictions are
            judged elsewhere.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, write_png: bool | None = None
    ) -> None:
        super().__init__(dataset_name, output_dir)
        metadata = MetadataCatalog.get(dataset_name)
        things = set(metadata.thing_dataset_id_to_contiguous_id)
        stuff = set(metadata.stuff_dataset_id_to_contiguous_id) - things
        self._absent = [kind for kind, ids in (("Things", things), ("Stuff", stuff)) if not ids]
        self._json_file = PathManager.get_local_path(metadata.panoptic_json)
        folder = PathManager.get_local_path(metadata.panoptic_root)
        content = load_json(self._json_file)
        read_categories(self._json_file, panoptic=True)  # checks them
        if "annotations" in content:  # those of test sets are with their owners
            content = read_panoptic(self._json_file, folder).content
        self._categories = {
            category["id"]: {"isthing": category["isthing"]} for category in content["categories"]
        }
        # image id: PNG and segments, in the order of the file
        self._truth: Mapping[Any, tuple[str, list[dict[str, Any]]]] = KeptOnDisk(
            (
                (
                    record["image_id"],
                    (
                        os.path.join(folder, record["file_name"]),
                        [{k: s[k] for k in _SEGMENT if k in s} for s in record["segments_info"]],
                    ),
                )
                for record in content.pop("annotations", ())
            ),
            output_dir,
        )
        self._header = json.dumps(content) if output_dir else ""  # of predictions.json
        wanted = not self._truth if write_png is None else write_png
        self._png_folder = (
            os.path.join(output_dir, "predictions") if output_dir and wanted else None
        )
        self._pool: ThreadPoolExecutor | None = None

    def reset(self) -> None:
        """Forget all predictions."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)  # what a failed evaluation left
        self._pool = ThreadPoolExecutor(_THREADS)
        self._waiting: deque[Future[tuple[Any, list[Row], str]]] = deque()
        self._judged = Spool(self._output_dir)  # image ids and rows, see _judge
        self._without_truth = 0
        self._spool = Spool(self._output_dir) if self._output_dir else None
        if self._png_folder:
            os.makedirs(self._png_folder, exist_ok=True)

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Compare predictions with the ground truth.

        Args:
            inputs: records with ``image_id`` and ``file_name``.
            outputs: dicts with ``panoptic_seg``: ids ``(H, W)`` and the dicts of the segments,
                with contiguous ``category_id`` and ``isthing``.

        Raises:
            ValueError: naming the image, when ids, segments and ground truth do not fit together.
                It may come from one of the next calls, or from :meth:`evaluate`.
        """
        assert self._pool is not None, "reset() comes before process()"
        for record, output in zip(inputs, outputs):
            ids, segments = output["panoptic_seg"]
            segments = [self._convert_category_id(dict(segment)) for segment in segments]
            arguments = record["image_id"], record["file_name"], ids.cpu().numpy(), segments
            self._waiting.append(self._pool.submit(self._judge, *arguments))
            self._collect(at_most=2 * _THREADS)

    def _collect(self, at_most: int) -> None:
        """Keep what is judged, in order, and wait for the oldest until at most so many are left.

        So memory does not grow when the threads are slower than the model.
        """
        while len(self._waiting) > at_most or (self._waiting and self._waiting[0].done()):
            image_id, rows, line = self._waiting.popleft().result()
            if image_id in self._truth:
                self._judged.add_value((image_id, rows))
            else:
                self._without_truth += 1
            if self._spool is not None:
                self._spool.add(line)

    def _judge(
        self, image_id: Any, file_name: str, ids: np.ndarray, segments: list[dict[str, Any]]
    ) -> tuple[Any, list[Row], str]:
        """What is kept of an image; called in threads.

        Returns:
            Its id; a row for each category that it has: id, sum of IoUs in units, true and false
            positives, false negatives; its record of predictions.json.
        """
        png = f"{PurePath(file_name).stem}.png"
        if self._png_folder:
            write_panoptic_png(os.path.join(self._png_folder, png), ids)
        line = ""
        if self._spool is not None:
            line = json.dumps({"image_id": image_id, "file_name": png, "segments_info": segments})
        if image_id not in self._truth:
            return image_id, [], line
        path, true_segments = self._truth[image_id]
        where = f"Image {image_id} ('{path}')"
        true_ids = read_panoptic_png(path, where, ids.shape)
        statistics = image_statistics(
            true_ids, ids, true_segments, segments, self._categories, where=where
        )
        rows = [(c, s.units, s.tp, s.fp, s.fn) for c, s in statistics.categories.items()]
        return image_id, rows, line

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Join the counts of all processes; each of them must call this.

        Returns:
            ``{"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th", …}}`` in percent in the first process,
            empty if the data set has no annotations; None in the others.

        Raises:
            ValueError: an image of the ground truth has no prediction.
        """
        assert self._pool is not None, "reset() comes before evaluate()"
        self._collect(at_most=0)
        self._pool.shutdown()
        comm.synchronize()
        without_truth = sum(comm.gather(self._without_truth))
        total, missing = self._total()
        if self._spool is not None:
            path = os.path.join(self._output_dir, "predictions.json")
            before = f'{self._header[:-1]}, "annotations": ['
            self._spool.write(path, before=before, after="]}")
        if not comm.is_main_process():
            return None
        if not self._truth:
            logger.warning(
                "'%s' has no annotations: nothing is judged; %s",
                self._json_file,
                f"the results are in '{self._output_dir}': predictions.json and predictions/"
                if self._output_dir
                else "without an output folder no result is written",
            )
            return {}
        if without_truth:
            logger.warning(
                "%d predicted images are not in '%s': not judged", without_truth, self._json_file
            )
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self._truth)} images of '{self._json_file}' have no "
                f"prediction: {first_of(missing, 10)}."
            )
        quality = total.summary(self._categories)
        _print_panoptic_results(quality)
        metrics = {
            f"{name.upper()}{suffix}": 100 * quality[kind][name]
            for kind, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
            if kind not in self._absent
            for name in ("pq", "sq", "rq")
        }
        return {"panoptic_seg": metrics}

    def _total(self) -> tuple[PanopticStatistics, list[Any]]:
        """Statistics of all processes, in the first one, and images without a prediction."""
        total, missing = PanopticStatistics(), dict.fromkeys(self._truth)
        for image_id, rows in self._judged.values():
            if image_id not in missing:
                continue  # once more, to fill a batch
            del missing[image_id]
            for category, *counts in rows:
                total[category].add_units(*counts)
        return total, list(missing)
