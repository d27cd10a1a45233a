"""Writes a report: one HTML file with everything in it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from detectron2.data import Metadata
from markupsafe import Markup

from knet.classes import Category
from knet.data.images import MAX_PIXELS
from knet.evaluation.panoptic_quality import CategoryStatistics
from knet.report.collect import MEASURES, ReportCollector
from knet.report.outlines import draw_image
from knet.training.curves import curves_png
from knet.visualization import with_colors

_TASKS = {
    "panoptic_seg": "Panoptic segmentation",
    "segm": "Instances (masks)",
    "sem_seg": "Semantic segmentation",
}
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
# Evaluators' numbers a class, whose name follows: column → task, prefix, meaning.
_OF_CLASSES = {
    "AP": ("segm", "AP-", _MEANINGS["AP"]),
    "IoU": ("sem_seg", "IoU-", "intersection over union of the class's pixels"),
    "Accuracy": ("sem_seg", "ACC-", "share of the class's pixels that are right"),
}


class Metric(NamedTuple):
    """One number for all classes; ``value`` in percent, as the evaluators give it."""

    name: str
    value: float
    meaning: str


class Column(NamedTuple):
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
    of_classes = tuple(prefix for _, prefix, _ in _OF_CLASSES.values())
    groups = []
    for task, metrics in results.items():
        shown = []
        for name, value in metrics.items():
            if not name.startswith(of_classes) and math.isfinite(value):
                base, _, end = name.partition("_")
                kind = {"th": "things", "st": "stuff"}.get(end)
                meaning = _MEANINGS.get(base if kind else name, "")
                shown.append(
                    Metric(f"{base} {kind}", value, f"{meaning}, {kind}")
                    if kind
                    else Metric(name, value, meaning)
                )
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
    columns = [] if collector.task == "semantic" else _segment_columns(collector)
    things = [k for k, category in enumerate(categories) if category.is_thing]
    for name, (task, prefix, meaning) in _OF_CLASSES.items():
        metrics = results.get(task, {})
        values = [metrics.get(prefix + category.name) for category in categories]
        if name == "AP" and len(things) == 1:
            values[things[0]] = metrics.get("AP")  # of a single class there is no other
        values = [None if v is None or not math.isfinite(v) else v for v in values]
        columns.append(Column(name, meaning, values))
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


def render_report(
    collector: ReportCollector,
    results: Mapping[str, Mapping[str, float]],
    *,
    categories: Sequence[Category],
    metadata: Metadata,
    title: str,
    facts: Mapping[str, str],
    max_pixels: int = MAX_PIXELS,
    metrics: Path | None = None,
) -> str:
    """The page.

    Args:
        collector: with the results of all images.
        results: of the evaluators: task → metric → percent.
        categories: of the model.
        metadata: with the colours of the classes, if it has any.
        title: of the page.
        facts: what was scored and how, in the order that they are shown.
        max_pixels: a larger picture is refused.
        metrics: `metrics.json` of the training, whose curves are shown; None for none.

    Raises:
        ValueError: there is no image.
        DataError: a picture cannot be read.
    """
    pictures = [draw_image(image, max_pixels=max_pixels) for image in collector.images]
    if not pictures:
        raise ValueError("there is no image to report on")
    matrices = []
    if collector.task != "semantic":
        unit = "segments" if collector.task == "panoptic" else "instances"
        matrices.append((unit, collector.segment_confusion))
    if collector.pixel_confusion is not None:
        matrices.append(("pixels", collector.pixel_confusion))
    threshold = collector.score_threshold if collector.task == "instance" else 0.0
    scored = any(s.segment.score is not None for p in pictures for s in p.predicted)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("knet.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda value, digits=1: f"{value:.{digits}f}"
    environment.filters["thousands"] = lambda value: f"{value:,}".replace(",", "\u202f")
    return environment.get_template("page.html.j2").render(
        title=title,
        facts=facts,
        groups=overall_metrics(results),
        categories=categories,
        names={category.label: category.name for category in categories},
        colors=_colors(metadata, categories),
        columns=class_columns(results, collector, categories),
        matrices=matrices,
        pictures=pictures,
        present={s.segment.label for p in pictures for s in (*p.truth, *p.predicted)},
        scored=scored,
        measure=MEASURES[collector.task],
        task=collector.task,
        threshold=threshold,
        best=collector.score_counts.best() if scored else None,
        usual_f1=collector.score_counts.at(threshold),
        num_seen=collector.num_seen,
        curves=None if metrics is None else base64.b64encode(curves_png(metrics)).decode(),
        style=_asset("style.css"),
        script=_asset("report.js"),
    )


def _colors(metadata: Metadata, categories: Sequence[Category]) -> dict[int, str]:
    """The colours of drawings, ``#rrggbb`` by label."""
    colored = with_colors(metadata)
    colors = {}
    for category in categories:
        known = colored.thing_colors if category.is_thing else colored.stuff_colors
        colors[category.label] = "#" + "".join(f"{int(c):02x}" for c in known[category.label])
    return colors


def _asset(name: str) -> Markup:
    """A style sheet or script of ours as it is: no template, nothing to escape."""
    path = Path(__file__).parent / "templates" / name
    return Markup(path.read_text(encoding="utf-8"))
