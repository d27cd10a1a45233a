"""COCO's mask AP, image by image: what is kept of an image is on disk, the numbers are COCO's own.

``faster-coco-eval`` 1.8, measured: it keeps all masks to the end (0.4 MB an image of 100
detections, here 3 KB), takes longer, and its precisions differ from pycocotools' in the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools import mask as mask_util
from pycocotools.cocoeval import Params

from .spool import nameless_file

__all__ = ["ImageMatches", "accumulate", "match_image"]

_ROWS = 1 << 16  # detections that are sorted at a time
_CELLS = 1 << 18  # detections times thresholds that are summed at a time


class ImageMatches(NamedTuple):
    """How the detections of one image fared.

    Attributes:
        detections: (D,) records, by category and descending score: ``category``, a position in
            ``catIds``; ``rank`` in it; ``score``; ``flags``, bits of (2, areas, thresholds):
            matched with an object, and ignored, that is not counted.
        objects: (K, 1 + areas) a category's position, and how many of its objects count.
    """

    detections: np.ndarray
    objects: np.ndarray


def match_image(
    objects: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], parameters: Params
) -> ImageMatches:
    """Match the detections of one image with its objects, as ``COCOeval.evaluate`` does.

    A detection takes the free object of its category with the highest IoU, the last of equal
    ones, and one that is ignored only if no other fits. A crowd stays free.

    Args:
        objects: COCO's annotations: ``id``, ``category_id``, ``area``, ``iscrowd`` and an RLE as
            ``segmentation``.
        results: of COCO's results format: ``category_id``, ``score`` and an RLE.
        parameters: thresholds, areas, sorted ``catIds`` (others do not count), and ``maxDets``, of
            which the last limits the detections of a category.
    """
    position = {category: k for k, category in enumerate(parameters.catIds)}
    true = [one for one in objects if one["category_id"] in position]
    found = [one for one in results if one["category_id"] in position]
    found.sort(key=lambda one: (position[one["category_id"]], -one["score"]))
    category, true_category = (
        np.array([position[one["category_id"]] for one in part], np.int32) for part in (found, true)
    )
    rank = np.arange(len(found)) - np.searchsorted(category, category)
    keep = np.flatnonzero(rank < parameters.maxDets[-1]).tolist()
    found, category, rank = [found[k] for k in keep], category[keep], rank[keep]
    masks, true_masks = ([one["segmentation"] for one in part] for part in (found, true))
    crowd = np.array([one["iscrowd"] for one in true], bool)
    iou = np.zeros((len(found), len(true)))
    for label in np.intersect1d(category, true_category):
        rows, columns = np.flatnonzero(category == label), np.flatnonzero(true_category == label)
        iou[np.ix_(rows, columns)] = mask_util.iou(
            [masks[k] for k in rows], [true_masks[k] for k in columns], crowd[columns]
        )

    ignore = ~_in_range([one["area"] for one in true], parameters) | crowd  # (areas, G)
    has_id = np.array([one["id"] != 0 for one in true], bool)  # pycocotools: 0 is "no match"
    thresholds = np.minimum(parameters.iouThrs, 1 - 1e-10)
    free = np.ones((len(ignore), len(thresholds), len(true)), bool)
    flags = np.zeros((len(found), 2, *free.shape[:2]), bool)
    matched, ignored = flags[:, 0], flags[:, 1]
    for k in np.flatnonzero((iou >= thresholds[0]).any(axis=1)):
        near = np.flatnonzero(iou[k] >= thresholds[0])[::-1]  # argmax takes the first
        fits = free[..., near] & (iou[k, near] >= thresholds[:, None])
        counts = fits & ~ignore[:, None, near]
        fits = np.where(counts.any(-1, keepdims=True), counts, fits)
        area, threshold = np.nonzero(fits.any(-1))
        best = near[np.where(fits, iou[k, near], -1).argmax(-1)[area, threshold]]
        free[area, threshold, best] = crowd[best]
        matched[k, area, threshold] = has_id[best]
        ignored[k, area, threshold] = ignore[area, best]
    # of one mask after the other: pycocotools fails on a list of more than 255
    inside = _in_range([mask_util.area(mask) for mask in masks], parameters)
    ignored |= ~matched & ~inside.T[..., None]

    bits = np.packbits(flags.reshape(len(found), np.prod(flags.shape[1:])), axis=1)
    fields = [("category", "i4"), ("rank", "i4"), ("score", "f8"), ("flags", "u1", bits.shape[1:])]
    detections = np.empty(len(found), fields)
    detections["category"], detections["rank"], detections["flags"] = category, rank, bits
    detections["score"] = [one["score"] for one in found]
    present = np.unique(true_category)
    totals = ~ignore @ (true_category[:, None] == present).astype(np.int32)  # (areas, K)
    return ImageMatches(detections, np.column_stack([present, totals.T]))


def _in_range(areas: Sequence[float], parameters: Params) -> np.ndarray:
    """(ranges, n) whether each of n areas is in a range, its ends included."""
    low, high = np.array(parameters.areaRng, np.float64).T[..., None]
    return (low <= np.array(areas)) & (np.array(areas) <= high)


def accumulate(
    images: Iterable[tuple[int, ImageMatches]],
    parameters: Params,
    folder: str | os.PathLike[str] | None = None,
) -> COCOevalMaxDets:
    """Precision and recall of all categories, as ``COCOeval.accumulate`` has them.

    Memory holds some 200 bytes for each detection of one category.

    Args:
        images: at least one, each with its place in the order of ids, which decides between equal
            scores; in any order.
        parameters: those of :func:`match_image`.
        folder: of a temporary file for detections, about 35 bytes each, see ``nameless_file``.

    Returns:
        An evaluation with ``eval`` (``precision``, ``recall``), ready for ``summarize()``.
    """
    limits, recalls = parameters.maxDets, parameters.recThrs
    shape = (len(parameters.areaRng), len(parameters.iouThrs))
    sizes = (len(parameters.catIds), shape[0], len(limits))
    precision, recall = -np.ones((shape[1], len(recalls), *sizes)), -np.ones((shape[1], *sizes))
    totals = np.zeros(sizes[:2], np.int64)
    for k, part in enumerate(_by_category(images, totals, folder)):
        part = part[np.lexsort((part["rank"], part["image"], -part["score"]))]
        flags = np.unpackbits(part["flags"], axis=1, count=2 * shape[0] * shape[1])
        matched, ignored = flags.reshape(-1, 2, *shape).swapaxes(0, 1).view(bool)
        step = max(1, _CELLS // max(1, len(part)))  # thresholds at a time
        for a, m in np.ndindex(*sizes[1:]):
            if not totals[k, a]:
                continue
            rows = part["rank"] < limits[m]
            for begin in range(0, shape[1], step):
                some = slice(begin, begin + step)
                right, counted = matched[rows, a, some], ~ignored[rows, a, some]
                hits = np.cumsum(right & counted, axis=0)
                misses = np.cumsum(~right & counted, axis=0)
                found = hits / totals[k, a]
                exact = hits / (misses + hits + np.spacing(1))
                exact = np.maximum.accumulate(exact[::-1], axis=0)[::-1]  # that of a higher recall
                exact = np.append(exact, np.zeros((1, exact.shape[1])), axis=0)  # of none reached
                recall[some, k, a, m] = found[-1] if len(found) else 0
                for t in range(exact.shape[1]):
                    precision[begin + t, :, k, a, m] = exact[
                        np.searchsorted(found[:, t], recalls), t
                    ]
    evaluation = COCOevalMaxDets(iouType="segm")
    evaluation.params = parameters
    evaluation.eval = {"params": parameters, "precision": precision, "recall": recall}
    return evaluation


def _by_category(
    images: Iterable[tuple[int, ImageMatches]],
    totals: np.ndarray,
    folder: str | os.PathLike[str] | None,
) -> Iterator[np.ndarray]:
    """The detections of one category after the other, with their image's place as ``image``.

    Args:
        images, folder: as of :func:`accumulate`.
        totals: (K, areas) zeros; before the first category they become the numbers of objects.
    """
    counts = np.zeros(len(totals), np.int64)
    with nameless_file(folder) as mixed, nameless_file(folder) as sorted_rows:
        fields = np.dtype([("image", "i8")])
        for place, image in images:
            fields = np.dtype([("image", "i8"), *image.detections.dtype.descr])
            rows = np.empty(len(image.detections), fields)
            rows["image"] = place
            rows[list(image.detections.dtype.fields or ())] = image.detections
            mixed.write(rows.tobytes())
            counts += np.bincount(rows["category"], minlength=len(totals))
            np.add.at(totals, image.objects[:, 0], image.objects[:, 1:])
        places = np.cumsum(counts) - counts  # where the next row of each category goes
        mixed.seek(0)
        while block := mixed.read(_ROWS * fields.itemsize):
            rows = np.frombuffer(block, fields)
            for k in np.unique(rows["category"]):
                part = rows[rows["category"] == k]
                sorted_rows.seek(places[k] * fields.itemsize)
                sorted_rows.write(part.tobytes())
                places[k] += len(part)
        sorted_rows.seek(0)
        for count in counts.tolist():
            yield np.frombuffer(sorted_rows.read(count * fields.itemsize), fields)
