"""COCO's mask AP, image by image: what is kept of an image is small, the numbers are COCO's own.

pycocotools' ``COCOeval`` wants all results of a data set at once, and keeps their masks, IoUs and
matches. Here its own functions match the detections of one image (:func:`match_image`); of that,
scores and two bits for each detection, IoU threshold and range of areas remain. Its own function
sums them up, a category at a time (:func:`accumulate`).
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools import mask as mask_util
from pycocotools.cocoeval import COCOeval, Params

__all__ = ["ImageMatches", "accumulate", "mask_parameters", "match_image"]

_IMAGE = 0  # the id that COCOeval sees: there is one image at a time


@dataclass(frozen=True)
class ImageMatches:
    """How the detections of one image fared. 100 detections take about 3 KB.

    Attributes:
        categories: (K,) ids of those with an object or a detection.
        ends: (K,) where the detections of each category end.
        scores: (D,) float64, the detections of one category after the other.
        bits: (D, 2, n) uint8: matched and ignored, each bits of (areas, thresholds).
        objects: (K, areas) the objects that count.
    """

    categories: np.ndarray
    ends: np.ndarray
    scores: np.ndarray
    bits: np.ndarray
    objects: np.ndarray


def mask_parameters(category_ids: Iterable[int], max_detections: Sequence[int]) -> Params:
    """COCO's thresholds, recalls and areas.

    Args:
        category_ids: of the data set.
        max_detections: three limits of the detections of an image and category; AP has the last.
    """
    parameters = Params(iouType="segm")
    parameters.catIds = sorted(category_ids)
    parameters.maxDets = sorted(max_detections)
    return parameters


def match_image(
    objects: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], parameters: Params
) -> ImageMatches:
    """Match the detections of one image with its objects, as ``COCOeval.evaluate`` does.

    Args:
        objects: COCO's annotations: ``id``, ``category_id``, ``area``, ``iscrowd`` and an RLE as
            ``segmentation``.
        results: of COCO's results format: ``category_id``, ``score`` and an RLE.
        parameters: see :func:`mask_parameters`; other categories than theirs do not count.
    """
    evaluation = COCOeval(iouType="segm")
    evaluation.params = parameters
    evaluation._gts, evaluation._dts = defaultdict(list), defaultdict(list)
    for annotation in objects:
        key = (_IMAGE, annotation["category_id"])
        evaluation._gts[key].append({**annotation, "ignore": annotation["iscrowd"]})
    for number, result in enumerate(results, start=1):
        rle = result["segmentation"]
        evaluation._dts[_IMAGE, result["category_id"]].append(
            {"id": number, "score": result["score"], "segmentation": rle,
             "area": mask_util.area(rle)}
        )  # fmt: skip
    found = {category for _, category in (*evaluation._gts, *evaluation._dts)}
    categories = sorted(found & set(parameters.catIds))
    limit = parameters.maxDets[-1]
    scores, bits, counts = [], [], []
    for category in categories:
        evaluation.ious = {(_IMAGE, category): evaluation.computeIoU(_IMAGE, category)}
        areas = [
            evaluation.evaluateImg(_IMAGE, category, area, limit) for area in parameters.areaRng
        ]
        scores.append(np.array(areas[0]["dtScores"], np.float64))
        flags = np.array([[a["dtMatches"] != 0 for a in areas], [a["dtIgnore"] for a in areas]])
        _, num_areas, num_thresholds, count = flags.shape
        flags = flags.reshape(2, num_areas * num_thresholds, count).astype(bool)
        bits.append(np.packbits(flags.transpose(2, 0, 1), axis=-1))
        counts.append([np.count_nonzero(a["gtIgnore"] == 0) for a in areas])
    width = -(-len(parameters.areaRng) * len(parameters.iouThrs) // 8)
    return ImageMatches(
        categories=np.array(categories, np.int64),
        ends=np.cumsum([len(s) for s in scores], dtype=np.int64),
        scores=np.concatenate([np.zeros(0), *scores]),
        bits=np.concatenate([np.zeros((0, 2, width), np.uint8), *bits]),
        objects=np.array(counts, np.int32).reshape(-1, len(parameters.areaRng)),
    )


def accumulate(images: Sequence[ImageMatches], parameters: Params) -> COCOevalMaxDets:
    """Precision and recall of all categories, as ``COCOeval.accumulate`` has them.

    Args:
        images: in the order of their ids, which decides between equal scores.
        parameters: those of :func:`match_image`.

    Returns:
        An evaluation with ``eval`` (``precision``, ``recall``, ``scores``), ready for
        ``summarize()``.
    """
    # category: the images that have it, and its place there
    places: dict[int, list[tuple[ImageMatches, int]]] = {c: [] for c in parameters.catIds}
    for image in images:
        for k, category in enumerate(image.categories.tolist()):
            places[category].append((image, k))
    parts = [_accumulate_category(places[c], c, parameters) for c in parameters.catIds]
    evaluation = COCOevalMaxDets(iouType="segm")
    evaluation.params = parameters
    precision, recall, scores = (
        np.concatenate([part[name] for part in parts], axis=axis)
        for name, axis in (("precision", 2), ("recall", 1), ("scores", 2))
    )
    evaluation.eval = {
        "params": parameters,
        "counts": list(precision.shape),
        "precision": precision,
        "recall": recall,
        "scores": scores,
    }
    return evaluation


def _accumulate_category(
    places: Sequence[tuple[ImageMatches, int]], category: int, parameters: Params
) -> dict[str, Any]:
    evaluation = COCOeval(iouType="segm")
    evaluation.params = copy.copy(parameters)
    evaluation.params.catIds, evaluation.params.imgIds = [category], list(range(len(places)))
    evaluation._paramsEval = evaluation.params
    images = [_unpack(image, k, parameters) for image, k in places]
    areas = range(len(parameters.areaRng))
    evaluation.evalImgs = [image[area] for area in areas for image in images]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return evaluation.eval


def _unpack(image: ImageMatches, k: int, parameters: Params) -> list[dict[str, Any]]:
    """What ``COCOeval.accumulate`` reads of an image and category, for each range of areas."""
    rows = slice(image.ends[k - 1] if k else 0, image.ends[k])
    shape = (len(parameters.areaRng), len(parameters.iouThrs))
    flags = np.unpackbits(image.bits[rows], axis=-1, count=shape[0] * shape[1]).astype(bool)
    matched, ignored = flags.reshape(-1, 2, *shape).transpose(1, 2, 3, 0)
    return [
        {
            "dtScores": image.scores[rows],
            "dtMatches": matched[area],
            "dtIgnore": ignored[area],
            "gtIgnore": np.zeros(image.objects[k, area]),
        }
        for area in range(shape[0])
    ]
