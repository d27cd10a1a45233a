"""The golden numbers of the published implementation."""

import re
from pathlib import Path

import numpy as np
import pytest
from check_parity import main
from parity_report import Report

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [
    "instance_small",
    "panoptic_batch1",
    "panoptic_empty",
    *(f"semantic_{kind}" for kind in ("small", "psp", "aspp", "uper")),
    "modules",
]


@pytest.mark.parametrize("case", CASES)
def test_case_agrees(case, capsys):
    assert main([str(GOLDEN / case)]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("worst: value ") and " 0 of " in last


@pytest.mark.parametrize(
    "name, weight, quantity",
    [
        ("panoptic_batch1", "roi_head.mask_head.1.fc_mask.bias", "s1.mask_preds"),
        ("semantic_small", "decode_head.kernel_update_head.1.fc_mask.bias", "s1.logits"),
    ],
)
def test_disturbed_weight_fails(tmp_path, capsys, name, weight, quantity):
    case = tmp_path / "case"
    case.mkdir()
    for file in (GOLDEN / name).iterdir():
        (case / file.name).write_bytes(file.read_bytes())
    weights = dict(np.load(case / "weights.npz"))
    weights[weight] += 0.01
    np.savez(case / "weights.npz", **weights)
    assert main([str(case)]) == 1
    out = capsys.readouterr().out
    assert re.search(rf"FAIL value.*{re.escape(quantity)}", out)


def test_folder_without_case_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_report_rejects_other_shapes_and_nan():
    report = Report(quiet=True)
    report.compare("shape", np.zeros(3), np.zeros(4))
    report.compare("nan", np.array([np.nan]), np.array([1.0]))
    report.compare("fine", np.array([1.0]), np.array([1.0 + 1e-6]))
    assert [name for _, name, _ in report.failures] == ["shape", "nan"]
    assert not report.passed
    assert not Report().passed  # nothing compared is no success
