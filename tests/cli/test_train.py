"""`knet train` and `knet eval`: what they hand on. Training itself is tested with train_net.py."""

import sys
import types

import pytest

from knet.training import run
from knet_command import main

CONFIG = ["--config-file", "configs/shapes/panoptic.yaml"]


@pytest.fixture
def called(monkeypatch):
    """Arguments of what was called, by its name."""
    calls = {}

    def record(name):
        return lambda *words, **options: calls.update({name: (words, options)})

    recipe = types.ModuleType("knet.recipe")
    recipe.train_folder = record("train_folder")
    monkeypatch.setitem(sys.modules, "knet.recipe", recipe)
    monkeypatch.setattr(run, "train", record("train"))
    monkeypatch.setattr("knet.cli.eval.evaluate", record("evaluate"))
    return calls


def test_a_folder_goes_to_the_recipe(called):
    words = ["--data", "photos", "--epochs", "5", "--batch", "8", "--output", "out", "SEED", "1"]
    assert main(["train", *words, "--task", "instance", "--resume"]) == 0
    assert called["train_folder"] == (
        ("photos",),
        {"opts": ["SEED", "1"], "epochs": 5, "batch": 8, "output": "out", "task": "instance",
         "num_gpus": 1, "resume": True},
    )  # fmt: skip
    assert main(["train", "--data", "photos", "--batch", "auto", "--minutes", "2.5"]) == 0
    assert "batch" not in called["train_folder"][1]
    assert called["train_folder"][1]["minutes"] == 2.5


def test_a_command_line_of_its_own_may_be_forked(called, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["knet", "train", *CONFIG])
    assert main() == 0
    assert called["train"] == ((CONFIG[1], []), {"num_gpus": 1, "resume": False, "fork": True})


def test_a_config_is_trained_as_it_says(called):
    assert main(["train", *CONFIG, "--output", "out", "--seed", "4", "SOLVER.MAX_ITER", "3"]) == 0
    assert called["train"] == (
        (CONFIG[1], ["OUTPUT_DIR", "out", "SEED", 4, "SOLVER.MAX_ITER", "3"]),
        {"num_gpus": 1, "resume": False, "fork": False},
    )
    assert main(["eval", *CONFIG, "--weights", "x.pth", "--dataset", "a", "SEED", "4"]) == 0
    assert called["evaluate"] == (
        (CONFIG[1], ["MODEL.WEIGHTS", "x.pth", "SEED", "4", "DATASETS.TEST", ("a",)]),
        {"num_gpus": 1, "resume": False, "fork": False},
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*CONFIG, "--epochs", "3"], "--epochs goes with --data"),
        (["--data", "x", "--batch", "0"], "0 is no number from 1 on"),
        (["--data", "x", "--minutes", "0"], "0 is no number above 0"),
        (["--data", "x", "--minutes", "1", "--epochs", "1"], "not allowed with"),
        (["--data", "x", *CONFIG], "not allowed with"),
        ([], "one of the arguments --data --config-file is required"),
        ([*CONFIG, "--epoch", "3"], "there is no option --epoch; did you mean --epochs?"),
    ],
)
def test_wrong_calls(called, words, message, capsys):
    try:
        status = main(["train", *words])
    except SystemExit as end:  # of the parser
        status = end.code
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2 and message in line and not called


@pytest.mark.slow
def test_a_model_folder_is_scored(model_folder, capsys):
    assert main(["eval", "--model", str(model_folder), "--dataset", "tiny_val"]) == 0
    said = capsys.readouterr().out
    assert "scoring on tiny_val" in said and "panoptic_seg" in said and "mIoU" in said
    for words, message in (
        ([], "names no data set: name one with --dataset"),
        (
            ["--dataset", "nowhere"],
            "'nowhere' is not registered: name one of Detectron2's; one of your own",
        ),
        (["--dataset", "tiny_val", "--num-gpus", "2"], "--num-gpus go with --config-file"),
        (["--dataset", "tiny_val", "TEST.AUG.ENABLED", "True"], "TEST.AUG is scored with a config"),
    ):
        assert main(["eval", "--model", str(model_folder), *words]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
