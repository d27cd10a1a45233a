"""Scores of results that are there: no model is run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from tqdm import tqdm

from knet.classes import categories_of, class_ids_from_config
from knet.errors import UserError, first_of
from knet.evaluation.build import build_evaluator
from knet.evaluation.scores import log_scores
from knet.modeling.build import is_semantic

__all__ = ["Predictions", "evaluate_outputs", "evaluate_shards", "require_all"]

_TASKS = ("panoptic", "instance", "semantic")


class Predictions(Protocol):
    """Results of the images of a data set, as files or shards hold them."""

    tasks: list[str]

    def missing(self, records: Sequence[dict[str, Any]]) -> list[str]: ...

    def output_of(self, record: dict[str, Any]) -> dict[str, Any]: ...


def require_all(
    cfg: CfgNode, predictions: Predictions, records: Sequence[dict[str, Any]], name: str
) -> None:
    """Have a config ask for the results that there are, which must be those of all records.

    Args:
        cfg: its ``MODEL.KNET.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON`` are set.
        predictions: that are to be scored.
        records: of the data set.
        name: of the results, for the message.

    Raises:
        UserError: a record has none.
    """
    missing = predictions.missing(records)
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} of the data set's {len(records)} images: "
            f"{first_of(missing, 3)}"
        )
    for task in _TASKS:
        cfg.MODEL.KNET.TEST[f"{task.upper()}_ON"] = task in predictions.tasks


def evaluate_outputs(
    records: Iterable[dict[str, Any]],
    output_of: Callable[[dict[str, Any]], dict[str, Any]],
    evaluators: DatasetEvaluators,
    see: Callable[[dict[str, Any], dict[str, Any]], object] = lambda record, output: None,
) -> dict[str, dict[str, float]]:
    """Score all images, with progress and time left on the standard error.

    Args:
        records: of the data set.
        output_of: gives the model's results of a record.
        evaluators: see :func:`knet.evaluation.build_evaluator`.
        see: gets each record and its results.

    Returns:
        What the evaluators give: task → metric → percent.
    """
    evaluators.reset()
    for record in tqdm(records, unit="picture"):
        output = output_of(record)
        # first: Detectron2's evaluators change the records of segments
        see(record, output)
        evaluators.process([record], [output])
    return dict(evaluators.evaluate())


def evaluate_shards(cfg: CfgNode, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Score the results in Parquet shards, image by image; the scores are logged as tables.

    Args:
        cfg: DATASETS.TEST are registered data sets, each of whose images has a row.
        folder: of the shards; rows of other images do not count.

    Returns:
        The scores by task; with several data sets, by data set and task.

    Raises:
        UserError: an image of a data set has no results.
        OSError, ValueError: the shards cannot be read, or do not fit the data set.
        ImportError: pyarrow is missing.
    """
    from knet.results.read_shards import ShardPredictions  # needs pyarrow

    cfg = cfg.clone()
    cfg.defrost()
    results = {}
    for name in cfg.DATASETS.TEST:
        records = DatasetCatalog.get(name)
        ids = class_ids_from_config(cfg, semantic=is_semantic(cfg))
        categories = categories_of(MetadataCatalog.get(name), ids)
        predictions = ShardPredictions(folder, categories=categories)
        require_all(cfg, predictions, records, f"--results {folder}")
        evaluators = build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference"))
        ordered = predictions.in_order(records)
        results[name] = evaluate_outputs(ordered, predictions.output_of, evaluators)
        log_scores(name, results[name])
    return results if len(results) > 1 else next(iter(results.values()))
