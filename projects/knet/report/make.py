"""From an evaluation to the page: run a model or read its result files, score, render, write.

path = make_report(cfg, output="report.html")
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

import knet
from knet.classes import Category, categories_of, class_ids_from_config
from knet.data.custom import register_data_sets, require_registered
from knet.data.images import read_picture
from knet.errors import UserError
from knet.evaluation import build_evaluator
from knet.evaluation.of_results import Predictions, evaluate_outputs, require_all
from knet.files import write_text
from knet.modeling.build import is_semantic
from knet.predict.files import writable_folder
from knet.predictor import KNetPredictor
from knet.report.collect import ReportCollector, choose_task, has_truth
from knet.report.page import render_report
from knet.report.read_results import FilePredictions
from knet.visualization import DRAWN_SCORE

__all__ = ["make_report"]

OutputOf = Callable[[dict[str, Any]], dict[str, Any]]


def make_report(
    model: CfgNode | KNetPredictor,
    *,
    output: str | os.PathLike[str] = "report.html",
    dataset: str | None = None,
    predictions: str | None = None,
    task: str | None = None,
    num_images: int = 100,
    score_threshold: float = DRAWN_SCORE,
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Score, render and write a page that needs no server and no other file.

    Args:
        model: or its config, whose MODEL.WEIGHTS are loaded unless there are `predictions`.
        output: the page's file.
        dataset: a registered data set; the config's first one in DATASETS.TEST by default.
        predictions: folder of `knet.results.coco_files.ResultFiles` or of a run over many pictures,
            in place of running the model.
        task: whose results are shown image by image; the richest that there is by default.
        num_images: that are shown at most, half of them the worst, half the best.
        score_threshold: instances with a lower score do not count in confusion and F1.
        facts: shown on the page, name and text.

    Returns:
        The page's path.

    Raises:
        UserError, OSError, ValueError: naming what cannot be done.
    """
    output = Path(output)
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file, {output / 'report.html'}")
    writable_folder(output.parent, "--output")
    cfg = (model if isinstance(model, CfgNode) else model.cfg).clone()
    cfg.defrost()
    name = dataset or next(iter(cfg.DATASETS.TEST), None)
    if name is None:
        raise UserError("the config names no test data set: name one with --dataset")
    register_data_sets(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, name])
    require_registered(name)
    records = DatasetCatalog.get(name)
    if not records:
        raise UserError(f"the data set {name!r} has no image")
    metadata = MetadataCatalog.get(name)
    categories = categories_of(metadata, class_ids_from_config(cfg, semantic=is_semantic(cfg)))

    output_of, source = _results(model, cfg, predictions, records, categories)
    shown = choose_task(cfg, records, task)
    semantic = cfg.MODEL.KNET.TEST.SEMANTIC_ON and has_truth(records, "semantic")
    collector = ReportCollector(
        task=shown,
        categories=categories,
        ignore_label=metadata.get("ignore_label", 255),
        with_pixels=bool(semantic) and not all(c.is_thing for c in categories),
        score_threshold=score_threshold,
        num_images=num_images,
    )
    evaluators = build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference"))
    scores = evaluate_outputs(records, output_of, evaluators, collector.add)
    about = {
        "Data set": f"{name}, {len(records):,} images",
        **source,
        **(facts or {}),
        "Date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "Versions": f"knet {knet.__version__}, Detectron2 {detectron2.__version__}, "
        f"PyTorch {torch.__version__}, Python {platform.python_version()}",
    }
    page = render_report(
        collector,
        scores,
        categories=categories,
        metadata=metadata,
        title=f"Evaluation on {name}",
        facts=about,
        max_pixels=cfg.INPUT.MAX_PIXELS,
        metrics=_metrics_beside(cfg.MODEL.WEIGHTS),
    )
    write_text(output, page)
    return output


def _metrics_beside(weights: str) -> Path | None:
    """The `metrics.json` of the training that the weights come from, if they lie in its folder."""
    path = Path(weights).parent / "metrics.json"
    return path if weights and path.is_file() else None


def _results(
    model: CfgNode | KNetPredictor,
    cfg: CfgNode,
    folder: str | None,
    records: Sequence[dict[str, Any]],
    categories: Sequence[Category],
) -> tuple[OutputOf, dict[str, str]]:
    """What gives the results of a record, and where they come from."""
    if folder is None:
        if isinstance(model, CfgNode) and not cfg.MODEL.WEIGHTS:
            raise UserError(
                "no results to report on: name the weights with --weights FILE, or a folder of "
                "results with --predictions"
            )
        predictor = KNetPredictor.from_config(cfg) if isinstance(model, CfgNode) else model

        def run(record: dict[str, Any]) -> dict[str, Any]:
            limit = cfg.INPUT.MAX_PIXELS
            return predictor(read_picture(record, image_format="RGB", max_pixels=limit))

        return run, {"Weights": cfg.MODEL.WEIGHTS}
    predictions = _predictions(folder, categories)
    require_all(cfg, predictions, records, f"--predictions {folder}")
    return predictions.output_of, {"Predictions": folder}


def _predictions(folder: str, categories: Sequence[Category]) -> Predictions:
    if any(Path(folder).glob("*.parquet")):
        from knet.results.read_shards import ShardPredictions  # needs pyarrow

        return ShardPredictions(folder, categories=categories)
    return FilePredictions(folder, categories=categories)
