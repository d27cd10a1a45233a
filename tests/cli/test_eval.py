"""`knet eval`: the flags that go together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from knet.cli import eval as command
from knet.cli.parser import Parser
from knet.errors import UserError
from knet.evaluation.calibrate import Calibration, Mean, Thresholds


def run(*words):
    parser = Parser("eval", command.__doc__)
    command.add_arguments(parser)
    command.run(parser.parse(["--config-file", "x.yaml", *words]))


def test_calibrate_prints_the_table_and_the_keys(monkeypatch, capsys):
    things = {(t, 0.6): Mean(40 + 10 * t, 2) for t in (0.2, 0.3)}
    found = Calibration("", things, {(0.0, 0.6): Mean(10.0, 1)}, Thresholds(0.2, 0.0, 0.6))
    monkeypatch.setattr(command, "load_predictor", lambda args: args.config_file)
    monkeypatch.setattr(
        command, "calibrate_predictor", lambda *a: replace(found, dataset=" on ".join(a))
    )
    run("--calibrate", "--dataset", "mine")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PQ on x.yaml on mine, with the best thresholds")
    assert lines[3].split() == ["0.6", "0.3", "0", "43.00", "10.00", "32.00"]
    assert lines[5].startswith("31.33 under the model's own") and "32.00 at best" in lines[5]
    assert lines[6].split() == [
        "MODEL.KNET.TEST.THING_THRESH", "0.3", "MODEL.KNET.TEST.STUFF_THRESH", "0.0",
        "MODEL.KNET.TEST.OVERLAP_THRESH", "0.6",
    ]  # fmt: skip
    assert "report scores on others" in lines[7]


@pytest.mark.parametrize("words, message", [
    (["--resume"], "without --resume"), (["--num-gpus", "2"], "and --num-gpus"),
    (["--dataset", "a", "b"], "one --dataset"),
])  # fmt: skip
def test_what_calibrate_does_not_go_with(words, message):
    with pytest.raises(UserError, match=message):
        run("--calibrate", *words)
