"""Scores as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from tabulate import tabulate

__all__ = ["format_classes", "format_scores"]


def format_scores(results: Mapping[str, Mapping[str, float]]) -> str:
    """The scores of each task in a table.

    Args:
        results: `{"segm": {"AP": 40.1, "AP-disc": 30.2, …}, "sem_seg": …}`.
    """
    tables = []
    for task, metrics in results.items():
        totals = {name: value for name, value in metrics.items() if "-" not in name}
        row = [task, *totals.values()]
        tables.append(tabulate([row], ["", *totals], "simple", floatfmt=".1f"))
    return "\n\n".join(tables)


def format_classes(results: Mapping[str, Mapping[str, float]]) -> str:
    """The scores of each class in a table; empty if there are none.

    Args:
        results: as of `format_scores`; `AP-disc` is the AP of the class `disc`.
    """
    columns: list[str] = []
    rows: dict[str, dict[str, float]] = {}
    for metrics in results.values():
        for name, value in metrics.items():
            measure, dash, label = name.partition("-")
            if dash:
                rows.setdefault(label, {})[measure] = value
                columns += [] if measure in columns else [measure]
    table = [[label, *(row.get(column) for column in columns)] for label, row in rows.items()]
    return tabulate(table, ["class", *columns], "simple", floatfmt=".1f") if table else ""
