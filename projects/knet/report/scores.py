"""The numbers of a report: of all classes together, and a class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knet.evaluation.panoptic_quality import CategoryStatistics
from knet.report.collect import ReportCollector
from knet.results.categories import Category

__all__ = ["Column", "Metric", "class_columns", "overall_metrics"]

_TASKS = {
    "panoptic_seg": "Panoptic segmentation",
    "segm": "Instances (masks)",
    "sem_seg": "Semantic segmentation",
}
# What a class has: its name follows.
_OF_CLASSES = ("AP-", "IoU-", "ACC-")
_MEANINGS = {
    "PQ": "panoptic quality: SQ times RQ",
    "SQ": "segmentation quality: mean IoU of matched segments",
    "RQ": "recognition quality: how many segments are matched (F1)",
    "AP": "average precision over IoU thresholds 0.5 to 0.95",
    "AP50": "average precision at IoU 0.5",
    "AP75": "average precision at IoU 0.75",
    "APs": "average precision of small objects, below 32² pixels",
    "APm": "average precision of medium objects",
    "APl": "average precision of large objects, above 96² pixels",
    "mIoU": "mean intersection over union of the classes",
    "IoU": "mean intersection over union of the classes",
    "fwIoU": "intersection over union, classes weighted by their pixels",
    "mACC": "mean share of each class's pixels that are right",
    "pACC": "share of all pixels that are right",
}
_KINDS = {"_th": "things", "_st": "stuff"}


@dataclass(frozen=True)
class Metric:
    """One number for all classes; ``value`` in percent, as the evaluators give it."""

    name: str
    value: float
    meaning: str


@dataclass(frozen=True)
class Column:
    """One number a class.

    Attributes:
        name, meaning: of the number.
        values: one a class, in the order of the categories; None where there is none.
        is_count: a number of segments; else percent.
    """

    name: str
    meaning: str
    values: list[float | None]
    is_count: bool = False


def overall_metrics(
    results: Mapping[str, Mapping[str, float]],
) -> list[tuple[str, list[Metric]]]:
    """The metrics of each task, by its title, as the evaluators give them."""
    groups = []
    for task, metrics in results.items():
        shown = [
            Metric(name.replace("_th", " things").replace("_st", " stuff"), value, _meaning(name))
            for name, value in metrics.items()
            if not name.startswith(_OF_CLASSES) and math.isfinite(value)
        ]
        if shown:
            groups.append((_TASKS.get(task, task), shown))
    return groups


def class_columns(
    results: Mapping[str, Mapping[str, float]],
    collector: ReportCollector,
    categories: Sequence[Category],
) -> list[Column]:
    """What is known of each class; columns without a number are left out.

    AP, IoU and accuracy are the evaluators'; PQ, SQ, RQ and counts are of the same segments that
    their overall values are made of.
    """
    columns: list[Column] = []
    if collector.task != "semantic":
        columns += _segment_columns(collector)
    columns.append(_of_evaluator("AP", results.get("segm", {}), "AP-", categories))
    columns.append(_of_evaluator("IoU", results.get("sem_seg", {}), "IoU-", categories))
    columns.append(_of_evaluator("Accuracy", results.get("sem_seg", {}), "ACC-", categories))
    return [column for column in columns if any(v is not None for v in column.values)]


def _segment_columns(collector: ReportCollector) -> list[Column]:
    of_label = collector.statistics.categories
    counted = [of_label.get(label, CategoryStatistics()) for label in collector.labels]
    qualities = [s.quality() if s.occurs else None for s in counted]

    def percent(key: str) -> list[float | None]:
        return [None if q is None else 100 * q[key] for q in qualities]

    def ratio(key: str) -> list[float | None]:
        sums = [(s.tp, s.tp + getattr(s, key)) for s in counted]
        return [100 * tp / total if total else None for tp, total in sums]

    if collector.task == "panoptic":
        columns = [Column(n, _MEANINGS[n], percent(n.lower())) for n in ("PQ", "SQ", "RQ")]
    else:
        strong = f"instances with a score of at least {collector.score_threshold:g} at IoU 0.5"
        columns = [
            Column("F1", f"of {strong}", percent("rq")),
            Column("Precision", f"share of {strong} that are right", ratio("fp")),
            Column("Recall", f"share of objects found by {strong}", ratio("fn")),
        ]
    for name, key, meaning in (
        ("Found", "tp", "true positives: matched segments"),
        ("False", "fp", "false positives: predicted segments without a match"),
        ("Missed", "fn", "false negatives: true segments without a match"),
    ):
        values: list[float | None] = [getattr(s, key) if s.occurs else None for s in counted]
        columns.append(Column(name, meaning, values, is_count=True))
    return columns


def _of_evaluator(
    name: str, metrics: Mapping[str, Any], prefix: str, categories: Sequence[Category]
) -> Column:
    values = [metrics.get(prefix + category.name) for category in categories]
    things = [k for k, category in enumerate(categories) if category.is_thing]
    if name == "AP" and len(things) == 1:
        values[things[0]] = metrics.get("AP")  # of a single class there is no other
    meaning = _MEANINGS.get(name, "share of the class's pixels that are right")
    if name == "IoU":
        meaning = "intersection over union of the class's pixels"
    values = [v if v is not None and np.isfinite(v) else None for v in values]
    return Column(name, meaning, values)


def _meaning(name: str) -> str:
    kind = next((text for end, text in _KINDS.items() if name.endswith(end)), None)
    base = name[:-3] if kind else name
    return _MEANINGS.get(base, "") + (f", {kind}" if kind else "")
