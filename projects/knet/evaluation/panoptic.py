"""Panoptic quality of a model's results, counted image by image."""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Mapping, Sequence
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

from .background import Background
from .panoptic_quality import CategoryStatistics, PanopticStatistics, image_statistics
from .spool import Spool

__all__ = ["PanopticEvaluator"]

logger = logging.getLogger(__name__)

# category, sum of IoUs, true positives, false positives, false negatives
_ROW = struct.Struct("=qdiii")


class PanopticEvaluator(COCOPanopticEvaluator):
    """Detectron2's ``COCOPanopticEvaluator``, with the same results and ``predictions.json``.

    Detectron2's keeps the PNG of every prediction in memory, gathers them in one process, and
    compares them with the ground truth there at the end. This one compares each image as soon as
    it is predicted, in threads of the process that predicted it; processes exchange counts. The
    numbers are those of :func:`~knet.evaluation.panoptic_quality.pq_compute`, to the last bit,
    and do not depend on how many processes there are. A kind (things or stuff) without classes
    has no quality; Detectron2's says 0.

    In memory are, of each image: ids and categories of its ground truth segments (about 3 KB),
    and 36 bytes for each category found in it. Predicted ids are held for the few images that the
    threads work on.

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
        self._absent = [kind for kind, ids in (("_th", things), ("_st", stuff)) if not ids]
        self._json_file = PathManager.get_local_path(metadata.panoptic_json)
        self._folder = PathManager.get_local_path(metadata.panoptic_root)
        content = load_json(self._json_file)
        read_categories(self._json_file, panoptic=True)  # checks them
        if "annotations" in content:  # those of test sets are with their owners
            content = read_panoptic(self._json_file, self._folder).content
        self._categories = {
            category["id"]: {"isthing": category["isthing"]} for category in content["categories"]
        }
        # image id: position in the file, PNG, segments
        self._truth: dict[Any, tuple[int, str, list[dict[str, Any]]]] = {
            record["image_id"]: (
                position,
                os.path.join(self._folder, record["file_name"]),
                [_counted(segment) for segment in record["segments_info"]],
            )
            for position, record in enumerate(content.get("annotations", ()))
        }
        wanted = not self._truth if write_png is None else write_png
        self._png_folder = (
            os.path.join(output_dir, "predictions") if output_dir and wanted else None
        )
        self._judging: Background | None = None

    def reset(self) -> None:
        """Forget all predictions."""
        if self._judging is not None:
            self._judging.cancel()
        self._judging = Background(self._judge, self._keep)
        # position of an image in the ground truth: its rows
        self._judged: dict[int, bytes] = {}
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
        assert self._judging is not None, "reset() comes before process()"
        for record, output in zip(inputs, outputs):
            ids, segments = output["panoptic_seg"]
            segments = [self._convert_category_id(dict(segment)) for segment in segments]
            self._judging.put(record["image_id"], record["file_name"], ids.cpu().numpy(), segments)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Join the counts of all processes; each of them must call this.

        Returns:
            ``{"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th", …}}`` in percent in the first process,
            empty if the data set has no annotations; None in the others.

        Raises:
            ValueError: an image of the ground truth has no prediction.
        """
        assert self._judging is not None, "reset() comes before evaluate()"
        self._judging.finish()
        comm.synchronize()
        parts = comm.gather((self._judged, self._without_truth))
        if self._spool is not None:
            self._write_predictions(self._spool)
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
        without_truth = sum(count for _, count in parts)
        if without_truth:
            logger.warning(
                "%d predicted images are not in '%s': not judged", without_truth, self._json_file
            )
        judged: dict[int, bytes] = {}
        for rows, _ in parts:
            judged.update(rows)
        quality = self._total(judged).summary(self._categories)
        _print_panoptic_results(quality)
        metrics = {
            f"{name.upper()}{suffix}": 100 * quality[kind][name]
            for kind, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
            if suffix not in self._absent
            for name in ("pq", "sq", "rq")
        }
        return {"panoptic_seg": metrics}

    def _judge(
        self, image_id: Any, file_name: str, ids: np.ndarray, segments: list[dict[str, Any]]
    ) -> tuple[int | None, bytes, str]:
        """Position in the ground truth, rows and JSON of an image; called in threads."""
        png = os.path.splitext(os.path.basename(file_name))[0] + ".png"
        if self._png_folder:
            write_panoptic_png(os.path.join(self._png_folder, png), ids)
        line = ""
        if self._spool is not None:
            line = json.dumps({"image_id": image_id, "file_name": png, "segments_info": segments})
        if image_id not in self._truth:
            return None, b"", line
        position, path, true_segments = self._truth[image_id]
        where = f"Image {image_id} ('{path}')"
        statistics = image_statistics(
            read_panoptic_png(path, where, ids.shape),
            ids,
            true_segments,
            segments,
            self._categories,
            where=where,
        )
        rows = (
            _ROW.pack(category, s.iou, s.tp, s.fp, s.fn)
            for category, s in statistics.categories.items()
        )
        return position, b"".join(rows), line

    def _keep(self, judged: tuple[int | None, bytes, str]) -> None:
        position, rows, line = judged
        if position is None:
            self._without_truth += 1
        else:
            self._judged[position] = rows
        if self._spool is not None:
            self._spool.add(line)

    def _total(self, judged: Mapping[int, bytes]) -> PanopticStatistics:
        missing = [key for key, (position, *_) in self._truth.items() if position not in judged]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self._truth)} images of '{self._json_file}' have no "
                f"prediction: {first_of(missing, 10)}."
            )
        total = PanopticStatistics()
        for position in sorted(judged):  # sums round as if one process had seen the file's order
            for category, *counts in _ROW.iter_unpack(judged[position]):
                own = total[category]
                own += CategoryStatistics(*counts)
        return total

    def _write_predictions(self, spool: Spool) -> None:
        before = ""
        if comm.is_main_process():
            content = load_json(self._json_file)
            content.pop("annotations", None)
            before = f'{json.dumps(content)[:-1]}, "annotations": ['
        path = os.path.join(self._output_dir, "predictions.json")
        spool.write(path, before=before, after="]}")


def _counted(segment: Mapping[str, Any]) -> dict[str, Any]:
    return {key: segment[key] for key in ("id", "category_id", "iscrowd") if key in segment}
