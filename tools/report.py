#!/usr/bin/env python3
"""Turn an evaluation into one HTML page: scores, classes, confusions, best and worst images.

    python tools/report.py --config-file configs/shapes/panoptic.yaml --output report.html \\
        MODEL.WEIGHTS output/demo/model_final.pth
    python tools/report.py --config-file configs/shapes/panoptic.yaml --predictions FOLDER

Without --predictions the model is run over the data set. With it, nothing is run: the folder holds
results as files, as `demo/demo.py --results FOLDER` writes them (without --confidence-threshold, so
that the config's thresholds hold, as without --predictions). The page needs no server and no other
file.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import knet  # before Detectron2

# isort: split
import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from knet.classes import Category, categories_of, class_ids_from_config
from knet.config import get_cfg_from_file
from knet.data.custom import register_builtin, register_custom
from knet.data.images import read_picture
from knet.demo.files import writable_folder
from knet.errors import UserError, run_command
from knet.evaluation import build_evaluator
from knet.files import write_text
from knet.modeling.build import is_semantic
from knet.predictor import KNetPredictor
from knet.report.collect import MEASURES, ReportCollector, choose_task, evaluate, has_truth
from knet.report.page import render_report
from knet.report.read_results import FilePredictions
from knet.visualization import DRAWN_SCORE

OutputOf = Callable[[dict[str, Any]], dict[str, Any]]


def get_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--dataset", metavar="NAME", help="by default the config's first test data set"
    )
    parser.add_argument("--predictions", metavar="FOLDER", help="results as files, not run anew")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="(%(default)s)")
    parser.add_argument(
        "--images",
        type=int,
        default=100,
        metavar="N",
        help="show at most so many, half of them the worst, half the best (%(default)s)",
    )
    parser.add_argument(
        "--task",
        choices=list(MEASURES),
        help="whose results are shown image by image; by default the richest that there is",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=DRAWN_SCORE,
        metavar="SCORE",
        help="instances with a lower score do not count in confusion and F1 (%(default)s)",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    return parser


def make_report(args: argparse.Namespace) -> Path:
    """Score, render and write; returns the page's path.

    Raises:
        UserError, OSError, ValueError: naming what cannot be done.
    """
    output = Path(args.output)
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file, {output / 'report.html'}")
    writable_folder(output.parent, "--output")
    cfg = get_cfg_from_file(args.config_file, args.opts)
    name = args.dataset or next(iter(cfg.DATASETS.TEST), None)
    if name is None:
        raise UserError("the config names no test data set: name one with --dataset")
    register_builtin([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, name])
    register_custom(cfg)
    if name not in DatasetCatalog:
        raise UserError(f"the data set {name!r} is not registered")
    records = DatasetCatalog.get(name)
    if not records:
        raise UserError(f"the data set {name!r} has no image")
    metadata = MetadataCatalog.get(name)
    categories = categories_of(metadata, class_ids_from_config(cfg, semantic=is_semantic(cfg)))

    output_of, source = _results(args, cfg, records, categories)
    task = choose_task(cfg, records, args.task)
    semantic = cfg.MODEL.KNET.TEST.SEMANTIC_ON and has_truth(records, "semantic")
    collector = ReportCollector(
        task=task,
        categories=categories,
        ignore_label=metadata.get("ignore_label", 255),
        with_pixels=bool(semantic) and not all(c.is_thing for c in categories),
        score_threshold=args.score_threshold,
        num_images=args.images,
    )
    evaluators = build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference"))
    scores = evaluate(records, output_of, evaluators, collector)
    facts = {
        "Data set": f"{name}, {len(records):,} images",
        "Config": args.config_file,
        **source,
        "Options": " ".join(args.opts) or "none",
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
        facts=facts,
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
    args: argparse.Namespace,
    cfg: CfgNode,
    records: Sequence[dict[str, Any]],
    categories: Sequence[Category],
) -> tuple[OutputOf, dict[str, str]]:
    """What gives the results of a record, and where they come from."""
    if args.predictions is None:
        if not cfg.MODEL.WEIGHTS:
            raise UserError(
                "no results to report on: name the weights with MODEL.WEIGHTS FILE at the end of "
                "the line, or a folder of results with --predictions"
            )
        predictor = KNetPredictor.from_config(cfg)

        def run(record: dict[str, Any]) -> dict[str, Any]:
            limit = cfg.INPUT.MAX_PIXELS
            return predictor(read_picture(record, image_format="RGB", max_pixels=limit))

        return run, {"Weights": cfg.MODEL.WEIGHTS}
    predictions = FilePredictions(args.predictions, categories=categories)
    missing = predictions.missing(records)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"--predictions {args.predictions} lacks {len(missing)} of the data set's "
            f"{len(records)} images: {', '.join(missing[:3])}{more}"
        )
    for task in MEASURES:
        cfg.MODEL.KNET.TEST[f"{task.upper()}_ON"] = task in predictions.tasks
    return predictions.output_of, {"Predictions": args.predictions}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = get_parser()
    args = parser.parse_args(arguments)
    if args.images < 1:
        parser.error(f"--images {args.images}: a report shows at least one")
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold {args.score_threshold}: scores are 0 to 1")
    setup_logger(name="knet")
    return run_command("report.py", lambda: _report(args))


def _report(args: argparse.Namespace) -> None:
    path = make_report(args)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")


if __name__ == "__main__":
    sys.exit(main())
