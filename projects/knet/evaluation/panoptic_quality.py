"""Panoptic quality (PQ) of predictions in COCO's panoptic format.

Written from the metric's definition (Kirillov, He, Girshick, Rother, Dollár: "Panoptic
Segmentation", CVPR 2019) and COCO's rules for void and crowd regions:

* A prediction and a ground truth segment match if they have the same category and an IoU above
  0.5. The union leaves out the prediction's pixels on void. At most one pair can match a segment.
* Crowd segments never match; unmatched, they are no false negatives.
* An unmatched prediction is no false positive if more than half of its area lies on void
  together with the crowd segment of its own category.

Per category, ``PQ = sum(IoU of matches) / (TP + FP / 2 + FN / 2) = SQ * RQ``; the reported
numbers are means over the categories that occur.

The functions have the names, arguments and results of COCO's own ``panopticapi``, so that
Detectron2's ``COCOPanopticEvaluator`` can call them unchanged where that package is missing.
Counting needs numpy alone.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from knet.errors import first_of

__all__ = [
    "CategoryStatistics",
    "PanopticStatistics",
    "count_overlaps",
    "id2rgb",
    "image_statistics",
    "match_segments",
    "pq_compute",
    "rgb2id",
]

logger = logging.getLogger(__name__)

VOID = 0
# A segment id is a colour of three bytes, so a pair of ids fits into one 64 bit number.
OFFSET = 256**3
# to the distance of neighbouring floats from 0.5 to 1
_UNIT = 2**53


@dataclass
class CategoryStatistics:
    """Sum of the IoUs of matched pairs, and the counts of one category.

    The sum is exact, hence the same in any order and for any number of processes: an IoU above 0.5
    is a whole number of `_UNIT`.
    """

    units: int = 0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    @property
    def iou(self) -> float:
        """The sum, rounded."""
        return self.units / _UNIT

    def add(self, iou: float, tp: int, fp: int, fn: int) -> None:
        """Add those of other pairs."""
        self.add_units(round(iou * _UNIT), tp, fp, fn)

    def add_units(self, units: int, tp: int, fp: int, fn: int) -> None:
        """Add those of other images, with their sum of IoUs as `units`."""
        self.units += units
        self.tp += tp
        self.fp += fp
        self.fn += fn

    def quality(self) -> dict[str, float]:
        """``{"pq", "sq", "rq"}`` in [0, 1]; all zero for a category that does not occur."""
        weight = self.tp + 0.5 * self.fp + 0.5 * self.fn or 1.0
        return {
            "pq": self.iou / weight,
            "sq": self.iou / self.tp if self.tp else 0.0,
            "rq": self.tp / weight,
        }

    @property
    def occurs(self) -> bool:
        """Whether the category has a counted segment in ground truth or prediction."""
        return self.tp + self.fp + self.fn > 0


@dataclass
class PanopticStatistics:
    """The statistics of each category id; ``a += b`` adds those of other images."""

    categories: dict[int, CategoryStatistics] = field(default_factory=dict)

    def __getitem__(self, category_id: int) -> CategoryStatistics:
        return self.categories.setdefault(category_id, CategoryStatistics())

    def __iadd__(self, other: PanopticStatistics) -> PanopticStatistics:
        for category_id, own in other.categories.items():
            self[category_id].add_units(own.units, own.tp, own.fp, own.fn)
        return self

    def average(self, category_ids: Iterable[int]) -> dict[str, float]:
        """Means over those of ``category_ids`` that occur.

        Returns:
            ``{"pq", "sq", "rq"}`` in [0, 1] and ``"n"``, the number of categories averaged. All
            are zero if none occurs (a data set without stuff, say).
        """
        found = [self[c].quality() for c in category_ids if self[c].occurs]
        means = {
            key: sum(quality[key] for quality in found) / max(1, len(found))
            for key in ("pq", "sq", "rq")
        }
        return {**means, "n": len(found)}

    def summary(self, categories: Mapping[int, Mapping[str, Any]]) -> dict[str, dict]:
        """The result of :func:`pq_compute`.

        Args:
            categories: COCO's category records by id; ``isthing`` (0 or 1) is read.
        """
        things = [c for c, record in categories.items() if record["isthing"] == 1]
        return {
            "All": self.average(categories),
            "per_class": {c: self[c].quality() for c in categories},
            "Things": self.average(things),
            "Stuff": self.average(c for c in categories if c not in things),
        }


def image_statistics(
    gt_ids: np.ndarray,
    pred_ids: np.ndarray,
    gt_segments: Sequence[Mapping[str, Any]],
    pred_segments: Sequence[Mapping[str, Any]],
    categories: Iterable[int] | None = None,
    *,
    where: str = "image",
) -> PanopticStatistics:
    """Match the segments of one image and count.

    Args:
        gt_ids: ``(H, W)`` integers, ground truth segment id of each pixel, 0 for void.
        pred_ids: ``(H, W)`` integers, predicted segment id of each pixel, 0 for none.
        gt_segments: records with ``id``, ``category_id`` and optionally ``iscrowd``. Areas are
            counted in ``gt_ids``. As in COCO's own code, at most one crowd segment of a category
            counts (the last one).
        pred_segments: records with ``id`` and ``category_id``.
        categories: the known category ids; ``None`` accepts any.
        where: name of the image or its files for error messages.

    Raises:
        ValueError: sizes differ, an id is listed twice, a predicted id is in the map but not in
            the records or the reverse, a category is unknown.
    """
    if gt_ids.shape != pred_ids.shape:
        raise ValueError(
            f"{where}: the prediction's size (height, width) {tuple(pred_ids.shape)} "
            f"differs from the ground truth's {tuple(gt_ids.shape)}."
        )
    known = None if categories is None else set(categories)
    gt = _by_id(gt_segments, known, f"{where}, ground truth")
    pred = _by_id(pred_segments, known, f"{where}, prediction")

    overlap = count_overlaps(gt_ids, pred_ids)
    in_map, listed = {pred_id for _, pred_id in overlap} - {VOID}, set(pred)
    for wrong, place, other in ((in_map - listed, "PNG", "JSON"), (listed - in_map, "JSON", "PNG")):
        if wrong:
            raise ValueError(
                f"{where}: predicted segments {first_of(sorted(wrong), 10)} "
                f"are in the {place} but not in the {other}."
            )
    unlisted = sorted({gt_id for gt_id, _ in overlap} - set(gt) - {VOID})
    if unlisted:
        # COCO's code accepts this, so equal numbers need it too; but somebody should know.
        logger.warning(
            "%s: ground truth segments %s have pixels but no record.", where, first_of(unlisted, 10)
        )
    return match_segments(overlap, gt, pred)


def count_overlaps(gt_ids: np.ndarray, pred_ids: np.ndarray) -> Counter[tuple[int, int]]:
    """The pixels of each pair of a true and a predicted id, which maps of one size share."""
    pairs, counts = np.unique(
        gt_ids.astype(np.uint64) * np.uint64(OFFSET) + pred_ids.astype(np.uint64),
        return_counts=True,
    )
    # Plain ints from here: there are as many pairs as overlaps, not as pixels.
    return Counter(dict(zip((divmod(p, OFFSET) for p in pairs.tolist()), counts.tolist())))


def match_segments(
    overlap: Counter[tuple[int, int]],
    gt: Mapping[int, Mapping[str, Any]],
    pred: Mapping[int, Mapping[str, Any]],
) -> PanopticStatistics:
    """Match the segments of one image by their overlaps, and count.

    Args:
        overlap: see :func:`count_overlaps`.
        gt, pred: the records of :func:`image_statistics` by their ids; each of ``pred`` has pixels.
    """
    gt_area: Counter[int] = Counter()
    pred_area: Counter[int] = Counter()
    for (gt_id, pred_id), count in overlap.items():
        gt_area[gt_id] += count
        pred_area[pred_id] += count
    statistics = PanopticStatistics()
    crowds = {gt_id for gt_id, segment in gt.items() if segment.get("iscrowd", 0) == 1}
    gt_matched, pred_matched = set(), set()
    for (gt_id, pred_id), intersection in overlap.items():
        if gt_id not in gt or pred_id not in pred or gt_id in crowds:
            continue
        category_id = gt[gt_id]["category_id"]
        if category_id != pred[pred_id]["category_id"]:
            continue
        on_void = overlap[VOID, pred_id]
        iou = intersection / (gt_area[gt_id] + pred_area[pred_id] - intersection - on_void)
        if iou > 0.5:
            statistics[category_id].add(iou, 1, 0, 0)
            gt_matched.add(gt_id)
            pred_matched.add(pred_id)

    for gt_id in gt.keys() - gt_matched - crowds:
        statistics[gt[gt_id]["category_id"]].fn += 1
    crowd_of_category = {gt[gt_id]["category_id"]: gt_id for gt_id in gt if gt_id in crowds}
    for pred_id in pred.keys() - pred_matched:
        category_id = pred[pred_id]["category_id"]
        crowd_id = crowd_of_category.get(category_id)
        ignored = overlap[VOID, pred_id]
        ignored += 0 if crowd_id is None else overlap[crowd_id, pred_id]
        if not ignored / pred_area[pred_id] > 0.5:
            statistics[category_id].fp += 1
    return statistics


def _by_id(
    segments: Sequence[Mapping[str, Any]], known: set[int] | None, where: str
) -> dict[int, Mapping[str, Any]]:
    by_id: dict[int, Mapping[str, Any]] = {}
    for segment in segments:
        if segment["id"] in by_id:
            raise ValueError(f"{where}: segment id {segment['id']} is listed twice.")
        if known is not None and segment["category_id"] not in known:
            raise ValueError(
                f"{where}: segment {segment['id']} has unknown category id "
                f"{segment['category_id']}."
            )
        by_id[segment["id"]] = segment
    return by_id


def pq_compute(
    gt_json_file: str | os.PathLike,
    pred_json_file: str | os.PathLike,
    gt_folder: str | os.PathLike | None = None,
    pred_folder: str | os.PathLike | None = None,
) -> dict[str, dict]:
    """Panoptic quality of a data set in COCO's panoptic format (a JSON and a folder of PNGs).

    Only one pair of images a worker is in memory at any time. Workers are threads: reading PNGs
    and sorting release the interpreter's lock, and nothing is forked beside CUDA.

    Args:
        gt_json_file: ground truth with ``categories`` and ``annotations``.
        pred_json_file: predictions; an ``annotations`` record for each image of the ground truth.
        gt_folder: folder of its PNGs; by default the JSON's path without ``.json``.
        pred_folder: the same for the predictions.

    Returns:
        ``{"All": {"pq", "sq", "rq", "n"}, "Things": …, "Stuff": …, "per_class": {category id:
        {"pq", "sq", "rq"}}}`` with qualities in [0, 1] and the number ``n`` of categories.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: an image without prediction, a PNG that holds no ids (RGB, or RGBA whose alpha
            is ignored), or a record that contradicts its PNG; the message names the file and the
            segment.
    """
    # not above: the counting itself needs numpy alone
    from knet.data.coco_file import load_json
    from knet.data.images import MAX_PIXELS
    from knet.data.panoptic_png import read_panoptic_png

    gt_folder = os.path.splitext(gt_json_file)[0] if gt_folder is None else gt_folder
    pred_folder = os.path.splitext(pred_json_file)[0] if pred_folder is None else pred_folder
    for folder, content in ((gt_folder, "ground truth"), (pred_folder, "predicted")):
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"Folder '{folder}' with {content} segments does not exist.")
    gt_json, pred_json = (load_json(os.fspath(path)) for path in (gt_json_file, pred_json_file))
    pred_by_image = {record["image_id"]: record for record in pred_json["annotations"]}
    pixels = {
        image["id"]: image["height"] * image["width"]
        for image in gt_json.get("images", ())
        if {"height", "width"} <= set(image)
    }
    categories = {record["id"]: record for record in gt_json["categories"]}
    missing = [r["image_id"] for r in gt_json["annotations"] if r["image_id"] not in pred_by_image]
    if missing:
        raise ValueError(
            f"'{pred_json_file}' has no prediction for {len(missing)} of "
            f"{len(gt_json['annotations'])} images of '{gt_json_file}': {first_of(missing, 10)}."
        )

    def one_image(true: Mapping[str, Any]) -> PanopticStatistics:
        image_id = true["image_id"]
        found = pred_by_image[image_id]
        path = os.path.join(pred_folder, found["file_name"])
        # labels may be as large as their picture; of another size they may be, too
        most = max(MAX_PIXELS, pixels.get(image_id, 0))
        name = f"image {image_id}"
        return image_statistics(
            read_panoptic_png(os.path.join(gt_folder, true["file_name"]), name, max_pixels=most),
            read_panoptic_png(path, name, max_pixels=most),
            true["segments_info"],
            found["segments_info"],
            categories,
            where=f"Image {image_id} ('{path}')",
        )

    total = PanopticStatistics()
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for statistics in pool.map(one_image, gt_json["annotations"]):
            total += statistics
    return total.summary(categories)


def rgb2id(color: np.ndarray | Sequence[int]) -> np.ndarray | int:
    """Segment ids of COCO's panoptic PNG colours: ``R + 256 G + 256² B``.

    Args:
        color: ``(H, W, 3)`` integer image, or one colour of three numbers.

    Returns:
        ``(H, W)`` ids (int32 for a uint8 image, else the image's type), or one int.
    """
    rgb = np.asarray(color)
    if rgb.dtype.itemsize < 4:  # 256 * G would overflow
        rgb = rgb.astype(np.int32)
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]
    return ids if ids.ndim else int(ids)


def id2rgb(id_map: np.ndarray | int) -> np.ndarray | list[int]:
    """The colours that COCO's panoptic PNGs store for segment ids; inverse of :func:`rgb2id`.

    Args:
        id_map: integer array of any shape, or one id; ids are in ``[0, 256³)``.

    Returns:
        uint8 array of shape ``id_map.shape + (3,)``, or a list of three ints.

    Raises:
        ValueError: an id lies outside the range and would silently become another one.
    """
    ids = np.asarray(id_map)
    if ids.size and (ids.min() < 0 or ids.max() >= OFFSET):
        raise ValueError(
            f"Segment ids must lie in [0, {OFFSET}) to be stored as colours; "
            f"got {ids.min()} to {ids.max()}."
        )
    rgb = (ids.astype(np.int64)[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)
    return rgb if isinstance(id_map, np.ndarray) else rgb.tolist()
