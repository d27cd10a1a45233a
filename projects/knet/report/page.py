"""Writes a report: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from detectron2.data import Metadata
from markupsafe import Markup

from knet.data.images import MAX_PIXELS
from knet.report.collect import MEASURES, ReportCollector
from knet.report.confusion import Confusion
from knet.report.pictures import Picture, draw_picture
from knet.report.scores import class_columns, overall_metrics
from knet.results.categories import Category
from knet.visualizer import ClassColorVisualizer

__all__ = ["class_colors", "render_report"]

# Ends of the confusion's rows and columns, see ConfusionTable.
_OTHERS = {-1: ("found, but not there", "missed"), -2: ("other classes", "other classes")}


@dataclass(frozen=True)
class _Matrix:
    """A confusion as the template wants it."""

    title: str
    unit: str
    rows: list[tuple[int, str, list[tuple[int, float, bool]]]]
    columns: list[tuple[int, str]]
    frequent: list[tuple[str, str, int, float]]


def class_colors(metadata: Metadata, categories: Sequence[Category]) -> dict[int, str]:
    """The colours of drawings, ``#rrggbb`` by label."""
    colored = ClassColorVisualizer(np.zeros((1, 1, 3), np.uint8), metadata).metadata
    colors = {}
    for category in categories:
        known = colored.thing_colors if category.is_thing else colored.stuff_colors
        colors[category.label] = "#" + "".join(f"{int(c):02x}" for c in known[category.label])
    return colors


def render_report(
    collector: ReportCollector,
    results: Mapping[str, Mapping[str, float]],
    *,
    categories: Sequence[Category],
    metadata: Metadata,
    title: str,
    facts: Mapping[str, str],
    max_pixels: int = MAX_PIXELS,
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

    Raises:
        ValueError: there is no image.
        DataError: a picture cannot be read.
    """
    images = collector.images
    if not images:
        raise ValueError("there is no image to report on")
    pictures: list[Picture] = [draw_picture(image, max_pixels=max_pixels) for image in images]
    columns = class_columns(results, collector, categories)
    matrices = []
    if collector.segment_confusion is not None:
        unit = "segments" if collector.task == "panoptic" else "instances"
        matrices.append(_matrix(collector.segment_confusion, unit, categories))
    if collector.pixel_confusion is not None:
        matrices.append(_matrix(collector.pixel_confusion, "pixels", categories))
    present = {s.label for p in pictures for s in (*p.truth, *p.predicted)}
    threshold = collector.score_threshold if collector.task == "instance" else 0.0
    scored = any(s.score is not None for p in pictures for s in p.predicted)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            facts=facts,
            groups=overall_metrics(results),
            categories=categories,
            of_label={category.label: category for category in categories},
            colors=class_colors(metadata, categories),
            columns=columns,
            matrices=matrices,
            pictures=pictures,
            present=present,
            scored=scored,
            measure=MEASURES[collector.task],
            task=collector.task,
            threshold=threshold,
            best=collector.score_counts.best() if scored else None,
            usual_f1=collector.score_counts.at(threshold),
            num_seen=collector.num_seen,
            style=_asset("style.css"),
            script=_asset("report.js"),
        )
    )


def _matrix(confusion: Confusion, unit: str, categories: Sequence[Category]) -> _Matrix:
    table = confusion.table()

    def name(key: int, *, is_row: bool) -> str:
        return categories[key].name if key >= 0 else _OTHERS[key][0 if is_row else 1]

    def label(key: int) -> int:
        return categories[key].label if key >= 0 else key

    rows = []
    for row, counts, shares in zip(table.rows, table.counts, table.shares):
        cells = [
            (int(count), float(share), row == column and row >= 0)
            for column, count, share in zip(table.columns, counts, shares)
        ]
        rows.append((label(row), name(row, is_row=True), cells))
    frequent = [
        (name(true, is_row=True), name(found, is_row=False), count, share)
        for true, found, count, share in confusion.most_frequent()
    ]
    columns = [(label(key), name(key, is_row=False)) for key in table.columns]
    return _Matrix(f"Confusion of {unit}", unit, rows, columns, frequent)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("knet.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = _percent
    environment.filters["thousands"] = lambda value: f"{value:,}".replace(",", "\u202f")
    return environment


def _percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}"


def _asset(name: str) -> Any:
    """A style sheet or script of ours as it is: no template, nothing to escape."""
    path = Path(__file__).parent / "templates" / name
    return Markup(path.read_text(encoding="utf-8"))
