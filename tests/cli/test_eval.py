"""`knet eval`: the flags that go together."""

from __future__ import annotations

import pytest

from knet.cli import eval as command
from knet.cli.parser import Parser
from knet.errors import UserError
from knet.evaluation.calibrate import Calibration


def run(*words):
    parser = Parser("eval", command.__doc__)
    command.add_arguments(parser)
    command.run(parser.parse(["--config-file", "x.yaml", *words]))


def test_calibrate_prints_the_table_and_the_keys(monkeypatch, capsys):
    quality = {(t, 0.6): 40 + 10 * t for t in (0.2, 0.3)}
    monkeypatch.setattr(command, "load_predictor", lambda args: args.config_file)
    monkeypatch.setattr(
        command, "calibrate_predictor", lambda *a: Calibration(" on ".join(a), quality, (0.2, 0.6))
    )
    run("--calibrate", "--dataset", "mine")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "PQ on x.yaml on mine by thresholds:"
    assert [line.split() for line in lines[3:5]] == [["0.2", "42.00"], ["0.3", "43.00"]]
    assert "42.00 under the model's 0.2 and 0.6, 43.00 at best" in lines[6]
    assert lines[7].split() == [
        "MODEL.KNET.TEST.THING_THRESH", "0.3", "MODEL.KNET.TEST.OVERLAP_THRESH", "0.6",
    ]  # fmt: skip
    assert "report scores on others" in lines[8]


@pytest.mark.parametrize("words, message", [
    (["--resume"], "without --resume"), (["--num-gpus", "2"], "and --num-gpus"),
    (["--dataset", "a", "b"], "one --dataset"),
])  # fmt: skip
def test_what_calibrate_does_not_go_with(words, message):
    with pytest.raises(UserError, match=message):
        run("--calibrate", *words)
