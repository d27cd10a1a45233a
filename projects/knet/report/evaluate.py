"""Scores the images of a data set one by one, for a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators
from tqdm import tqdm

from knet.report.collect import MEASURES, ReportCollector

__all__ = ["choose_task", "evaluate", "has_truth"]

# Task → keys of a record with ground truth for it; one of them is needed.
_TRUTH = {
    "panoptic": ("pan_seg_file_name",),
    "instance": ("annotations", "pan_seg_file_name"),
    "semantic": ("sem_seg_file_name", "pan_seg_file_name"),
}


def has_truth(records: Sequence[Mapping[str, Any]], task: str) -> bool:
    """Whether all records have ground truth for a task."""
    return all(any(key in record for key in _TRUTH[task]) for record in records)


def choose_task(
    cfg: CfgNode, records: Sequence[Mapping[str, Any]], wanted: str | None = None
) -> str:
    """The task whose results a report shows image by image.

    Args:
        cfg: ``MODEL.KNET.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON`` tell what there is.
        records: of the data set.
        wanted: by the user; None takes the richest that has results and ground truth.

    Raises:
        ValueError: there are no results, or no ground truth, for it.
    """
    given = [task for task in MEASURES if cfg.MODEL.KNET.TEST[f"{task.upper()}_ON"]]
    judged = [task for task in given if has_truth(records, task)]
    if wanted is None:
        if not judged:
            raise ValueError(
                f"the results are {' and '.join(given) or 'none'}, and the data set has no "
                "ground truth for them"
            )
        return judged[0]
    if wanted not in given:
        raise ValueError(f"--task {wanted}: there are results for {' and '.join(given)} only")
    if wanted not in judged:
        raise ValueError(f"--task {wanted}: the data set has no ground truth for it")
    return wanted


def evaluate(
    records: Sequence[dict[str, Any]],
    output_of: Callable[[dict[str, Any]], dict[str, Any]],
    evaluators: DatasetEvaluators,
    collector: ReportCollector,
) -> dict[str, dict[str, float]]:
    """Score all images, with progress and time left on the standard error.

    Args:
        records: of the data set.
        output_of: gives the model's results of a record.
        evaluators: see :func:`knet.evaluation.build_evaluator`.
        collector: sees the same results.

    Returns:
        What the evaluators give: task → metric → percent.
    """
    evaluators.reset()
    collector.reset()
    for record in tqdm(records, unit="picture"):
        output = output_of(record)
        # first: Detectron2's evaluators change the records of segments
        collector.process([record], [output])
        evaluators.process([record], [output])
    return dict(evaluators.evaluate())
