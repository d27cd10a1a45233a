"""An exported file beside the model that it was made of: results, scores, time and size.

report = check(predictor, artefact, records, data="shapes_val")
print(report.table())
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tabulate import tabulate

from knet.errors import UserError
from knet.evaluation.build import build_evaluator
from knet.evaluation.of_results import evaluate_outputs
from knet.evaluation.scores import MAIN_SCORES
from knet.export import compare
from knet.export.artefact import Artefact, feeds_of
from knet.export.compare import Measure, differences, to_detectron2
from knet.predictor import KNetPredictor

# limits of the precisions: shares in percent, scores from 0 to 1
TOLERANCES: Mapping[str, Mapping[Measure, float]] = {
    "float32": {
        compare.SAME_PIXELS: 99.5, compare.SEGMENT_SCORES: 0.001, compare.SAME_INSTANCES: 99.0,
        compare.INSTANCE_SCORES: 0.001, compare.BOXES: 98.0, compare.SAME_CLASSES: 99.5,
        compare.LOGITS: 0.01,
    },
    "float16": {
        compare.SAME_PIXELS: 90.0, compare.SEGMENT_SCORES: 0.1, compare.SAME_INSTANCES: 85.0,
        compare.INSTANCE_SCORES: 0.1, compare.BOXES: 75.0, compare.SAME_CLASSES: 90.0,
        compare.LOGITS: 1.0,
    },
    "int8": {
        compare.SAME_PIXELS: 80.0, compare.SEGMENT_SCORES: 0.25, compare.SAME_INSTANCES: 75.0,
        compare.INSTANCE_SCORES: 0.25, compare.BOXES: 50.0, compare.SAME_CLASSES: 80.0,
        compare.LOGITS: 10.0,
    },
}  # fmt: skip
# points that a score on a data set may differ by
SCORE_TOLERANCE = {"float32": 0.1, "float16": 0.5, "int8": 1.0}
_REPEATS = 5
_NAMES = dict(zip(MAIN_SCORES, ("PQ", "mask AP", "mIoU")))


@dataclass
class Report:
    """What a check found.

    Attributes:
        rows: name, the model's value, the file's, the tolerance and whether it holds; None where
            there is none.
    """

    rows: list[tuple[str, str, str, str, bool | None]] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Names of what is beyond its tolerance."""
        return [row[0] for row in self.rows if row[4] is False]

    def table(self) -> str:
        """All of it as text."""
        marks = {True: "", False: "beyond", None: ""}
        rows = [[*row[:4], marks[row[4]]] for row in self.rows]
        header = ["", "PyTorch", "exported", "tolerance", ""]
        return tabulate(rows, header, "simple", disable_numparse=True)


def check(
    predictor: KNetPredictor,
    artefact: Artefact,
    records: Sequence[Mapping[str, Any]],
    *,
    reference: Callable[[Mapping[str, Any]], Any],
    data: str = "",
    loader: Callable[[], Iterator[Any]] | None = None,
) -> Report:
    """Compare a file with its model.

    Args:
        predictor: the model.
        artefact: the file.
        records: images, see `knet.export.artefact.feeds_of`; the first is timed.
        reference: the model's results of a record.
        data: a registered data set that both are scored on; none if empty.
        loader: gives batches of its records.

    Returns:
        The table; `failed` of it is empty if the file is as good as its precision allows.

    Raises:
        UserError: there are no records.
    """
    if not records:
        raise UserError("a check needs pictures: name some with --pictures")
    precision = artefact.info["precision"]
    report = Report()
    worst: dict[Measure, float] = {}
    for record in records:
        found, expected = artefact(feeds_of(artefact.info, record)), reference(record)
        for measure, value in _measures(artefact, found, expected):
            before = worst.get(measure, value)
            worst[measure] = min(before, value) if measure.least else max(before, value)
    for measure, value in worst.items():
        limit = TOLERANCES[precision][measure]
        holds = value >= limit if measure.least else value <= limit
        report.rows.append(
            (measure.name, "", _text(value, measure), _text(limit, measure), bool(holds))
        )
    _time(report, artefact, records[0], reference)
    weights = sum(p.numel() * p.element_size() for p in predictor.model.parameters())
    report.rows.append(("size, MB", f"{weights / 1e6:.1f}", f"{artefact.size / 1e6:.1f}", "", None))
    if data:
        _score(report, predictor, artefact, data, loader)
    return report


def _measures(
    artefact: Artefact, found: Mapping[str, Any], expected: Any
) -> Iterator[tuple[Measure, float]]:
    if artefact.info["results"] != ["raw"]:
        yield from differences(found, expected)
        return
    for name, values in expected.items():
        yield compare.LOGITS, float(abs(found[name] - values.cpu().numpy()).max())


def _text(value: float, measure: Measure) -> str:
    return f"{value:.2f} %" if measure.unit == "%" else f"{value:.1e}"


def _time(
    report: Report, artefact: Artefact, record: Mapping[str, Any], reference: Callable[..., Any]
) -> None:
    """Both in turns, so that what else the machine does hits both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    feeds = feeds_of(artefact.info, record)
    works: tuple[Callable[[], Any], ...] = (lambda: reference(record), lambda: artefact(feeds))
    for _ in range(_REPEATS):
        for times, work in zip(seconds, works):
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
    ours, theirs = (1000 * statistics.median(times) for times in seconds)
    name = f"time of a picture, ms (median of {_REPEATS}, in turns)"
    report.rows.append((name, f"{ours:.1f}", f"{theirs:.1f}", "", None))


def _score(
    report: Report, predictor: KNetPredictor, artefact: Artefact, data: str, loader: Any
) -> None:
    cfg = predictor.cfg

    def of_model(record: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            return predictor.model([record])[0]

    assert loader is not None

    def of_file(record: dict[str, Any]) -> dict[str, Any]:
        results = artefact(feeds_of(artefact.info, record))
        return to_detectron2(results, record["height"], record["width"])

    scores = []
    for output_of in (of_model, of_file):
        records = (record for batch in loader() for record in batch)
        scores.append(
            evaluate_outputs(records, output_of, build_evaluator(cfg, data, cfg.OUTPUT_DIR))
        )
    limit = SCORE_TOLERANCE[artefact.info["precision"]]
    for key, name in _NAMES.items():
        task, metric = key.split("/")
        if metric in scores[0].get(task, {}):
            ours, theirs = (found[task][metric] for found in scores)
            holds = theirs >= ours - limit
            report.rows.append(
                (f"{name} on {data}", f"{ours:.2f}", f"{theirs:.2f}", f"-{limit}", holds)
            )
