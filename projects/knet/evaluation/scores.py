"""The scores of several evaluators, and as tables for a terminal."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from detectron2.evaluation import DatasetEvaluators
from tabulate import tabulate

# of each task, by importance; in percent, higher is better
MAIN_SCORES = ("panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU")

__all__ = ["MAIN_SCORES", "Evaluators", "format_classes", "format_scores", "log_scores"]

logger = logging.getLogger(__name__)


class Evaluators(DatasetEvaluators):
    """Several evaluators; what the data set cannot judge (NaN) is left out of the results.

    Such are the AP of sizes that no object has, or the IoU of classes that no pixel has.
    """

    def evaluate(self) -> Any:
        """As the original: the metrics a task, in percent; empty but in the main process."""
        results = super().evaluate()
        absent = []
        for task, metrics in results.items():
            names = [name for name, value in metrics.items() if math.isnan(value)]
            absent += [f"{task}/{name}" for name in names]
            results[task] = {name: metrics[name] for name in metrics if name not in names}
        if absent:
            logger.info("No ground truth for %s: not reported", ", ".join(absent))
        return results


def log_scores(name: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Log the scores on a data set as tables, and those of classes if they are not too many."""
    logger.info("scores on %s:\n%s", name, format_scores(scores))
    classes = format_classes(scores)
    if classes:
        few = classes.count("\n") <= 32  # else for the log file only
        logger.log(logging.INFO if few else logging.DEBUG, "classes:\n%s", classes)


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
    columns: dict[str, None] = {}  # in their order
    rows: dict[str, dict[str, float]] = {}
    for metrics in results.values():
        for name, value in metrics.items():
            measure, dash, label = name.partition("-")
            if dash:
                rows.setdefault(label, {})[measure] = value
                columns[measure] = None
    table = [[label, *(row.get(column) for column in columns)] for label, row in rows.items()]
    return tabulate(table, ["class", *columns], "simple", floatfmt=".1f") if table else ""
