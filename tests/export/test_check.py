"""A file beside its model: the table, and what is beyond the tolerance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from knet.errors import UserError
from knet.export import compare
from knet.export.artefact import Artefact, feeds_of
from knet.export.check import TOLERANCES, check
from knet.export.make import PRECISIONS, Choices
from knet.export.records import Records

from .models import small_cfg, small_predictor

pytestmark = pytest.mark.export


@pytest.fixture
def records(panoptic, pictures):
    records = Records(panoptic.predictor, Choices(), pictures=[str(pictures)], data="")
    return list(records.few())


@pytest.fixture
def reference(panoptic):
    def results(record):
        with torch.no_grad():
            return panoptic.predictor.model([record])[0]

    return results


def test_a_good_file(panoptic, records, reference):
    artefact = Artefact(panoptic.onnx, "onnx")
    report = check(panoptic.predictor, artefact, records, reference=reference)
    assert report.failed == [] and len(records) == 3
    table = report.table()
    for measure in TOLERANCES["float32"]:
        assert (measure.name in table) == (measure is not compare.LOGITS)
    size = panoptic.onnx.stat().st_size / 1e6
    assert f" {size:.1f}" in table.splitlines()[-1] and "beyond" not in table


def test_a_file_of_another_model_is_beyond(panoptic, records, reference):
    class Off(Artefact):
        def __call__(self, feeds):
            results = super().__call__(feeds)
            results["panoptic_ids"] = np.zeros_like(results["panoptic_ids"])
            results["segment_scores"] = results["segment_scores"] + 0.002
            results["instance_boxes"] = results["instance_boxes"] + 2
            return results

    report = check(panoptic.predictor, Off(panoptic.onnx, "onnx"), records, reference=reference)
    assert report.failed == [compare.SAME_PIXELS.name, compare.BOXES.name]
    assert report.table().count("beyond") == 2
    with pytest.raises(UserError, match="--pictures"):
        check(panoptic.predictor, Off(panoptic.onnx, "onnx"), [], reference=reference)


def test_scores_on_a_data_set_are_of_both(panoptic, records, reference, monkeypatch):
    asked = []

    def evaluate(given, output_of, evaluator):
        given = list(given)
        asked.append((len(given), sorted(output_of(given[0]))))
        return {"panoptic_seg": {"PQ": 50.0 - len(asked)}, "sem_seg": {"mIoU": 40.0}}

    monkeypatch.setattr("knet.export.check.evaluate_outputs", evaluate)
    monkeypatch.setattr("knet.export.check.build_evaluator", lambda *arguments: None)
    report = check(
        panoptic.predictor, Artefact(panoptic.onnx, "onnx"), records, reference=reference,
        data="mine", loader=lambda: [records],
    )  # fmt: skip
    kinds = ["instances", "panoptic_seg", "sem_seg"]
    assert asked == [(3, kinds), (3, kinds)]
    assert report.failed == ["PQ on mine"]
    assert report.rows[-2] == ("PQ on mine", "49.00", "48.00", "-0.1", False)
    assert report.rows[-1] == ("mIoU on mine", "40.00", "40.00", "-0.1", True)


def test_tolerances_widen_with_fewer_bits():
    for before, after in itertools.pairwise(PRECISIONS):
        for measure, limit in TOLERANCES[after].items():
            assert (limit < TOLERANCES[before][measure]) == measure.least


def test_pixels_are_fed_in_the_graphs_order(pictures):
    predictor = small_predictor(small_cfg("instance"), "instance")  # of BGR
    records = Records(predictor, Choices(), pictures=[str(pictures)], data="")
    record = next(records.few())
    info = {"input": {"name": "image", "dtype": "float32"}, "results": ["raw"]}
    fed = feeds_of(info, record)
    assert list(fed) == ["image"] and fed["image"].dtype == np.float32
    np.testing.assert_array_equal(fed["image"][0], record["image"].flip(0).numpy())
