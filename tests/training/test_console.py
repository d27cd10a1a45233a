"""What a user sees in the terminal, and what is in the log file."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest

from knet.data import loader
from knet.evaluation.scores import format_classes, format_scores
from knet.training.console import _is_news

pytestmark = pytest.mark.slow


def test_the_terminal_of_a_training(tiny_opts, tiny_shapes, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / "shapes").symlink_to(tiny_shapes)
    opts = [*tiny_opts, "SOLVER.MAX_ITER", "21", "SOLVER.WARMUP_ITERS", "2",
            "SOLVER.ACCUMULATION_STEPS", "2", "SOLVER.REFERENCE_BATCH", "16"]  # fmt: skip
    command = [sys.executable, "train_net.py", "--config-file", "configs/shapes/panoptic.yaml"]
    done = subprocess.run(
        [*command, *opts], capture_output=True, text=True, timeout=120,
        env={**os.environ, "DETECTRON2_DATASETS": str(root), "KNET_TRACEBACK": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert all(len(line) <= 160 for line in lines)
    steps = [i for i, line in enumerate(lines) if "] step " in line]
    assert len(steps) == 4 and steps[0] <= 8  # after steps 1, 5, 20 and 21
    start = "\n".join(lines[: steps[0]])
    for part in ("shapes_train", "12 images an epoch; all steps are 7.0 epochs", "parameters",
                 "steps 1 to 21, of 4 images (2 a pass x 2 passes), on CPU", "float32",
                 "learning rate 0.0005, scaled from 0.001 for the batch of 16; of the backbone",
                 str(tmp_path / "out")):  # fmt: skip
        assert part in start
    line = r"step 20 of 21  epoch 6\.7  \d:\d\d:\d\d left  loss [\d.]+  rate [\d.e-]+  "
    assert re.search(line + r"[\d.e+]+ images/s  [\d.]+ GB$", lines[steps[2]])
    scores = "\n".join(lines[steps[-1] :])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    for name in ("panoptic_seg", "segm", "sem_seg", "mIoU", "class", "disc"):
        assert name in scores
    assert f"{metrics['sem_seg/mIoU']:.1f}" in scores and "OrderedDict" not in scores
    log = (tmp_path / "out" / "log.txt").read_text()
    for part in ("Environment info", "POLY_LR_POWER", "KernelUpdater", "loss_round3_dice:",
                 "step 20 of 21", "Average Precision", "OrderedDict"):  # fmt: skip
        assert part in log


def _record(name, level, message, **kwargs):
    return logging.makeLogRecord({"name": name, "levelno": level, "msg": message, **kwargs})


def test_news_are_ours_and_the_warnings_of_all(monkeypatch):
    monkeypatch.delenv("KNET_TRACEBACK", raising=False)
    news = [
        _record("knet.training.console", logging.INFO, "step 1"),
        _record("detectron2.data.build", logging.WARNING, "odd"),
        _record("fvcore.common.checkpoint", logging.INFO, "Saving checkpoint to x.pth"),
        _record("detectron2.evaluation.evaluator", logging.INFO, "Inference done 11/40."),
    ]
    rest = [
        _record("knet.data.mapper", logging.DEBUG, "mapper"),
        _record("detectron2.engine.defaults", logging.INFO, "Model: …"),
        _record("fvcore.common.checkpoint", logging.INFO, "No checkpoint found"),
        # the command says it in its last line
        _record(
            "detectron2.engine.train_loop",
            logging.ERROR,
            "Exception",
            exc_info=(ValueError, ValueError("x"), None),
        ),
    ]
    assert all(map(_is_news, news)) and not any(map(_is_news, rest))


@pytest.fixture
def _fresh_number_of_workers():
    loader.usable_workers.cache_clear()
    yield
    loader.usable_workers.cache_clear()


@pytest.mark.usefixtures("_fresh_number_of_workers")
def test_no_more_workers_than_cores(monkeypatch, caplog):
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    with caplog.at_level(logging.INFO):
        assert [loader.usable_workers(n) for n in (0, 3, 8, 8)] == [0, 3, 3, 3]
        (record,) = caplog.records
        assert record.getMessage() == "DATALOADER.NUM_WORKERS: 3 in place of 8, on 3 cores"
    # two processes that share them, one that has its own, and one of another machine
    shares = {"here": [[0, 1, 2], [0, 1, 2], [3, 4]], "there": [[0, 1]]}
    told = [(host, cores) for host, masks in shares.items() for cores in masks]
    monkeypatch.setattr(loader.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(loader.comm, "all_gather", lambda _: told)
    for own, expected in (({0, 1, 2}, 1), ({3, 4}, 2)):
        monkeypatch.setattr(loader.os, "sched_getaffinity", lambda _, own=own: own, raising=False)
        loader.usable_workers.cache_clear()
        assert loader.usable_workers(8) == expected


def test_scores_are_tables():
    results = {
        "segm": {"AP": 40.123, "AP50": 60.0, "AP-disc": 30.0, "AP-star": 50.25},
        "sem_seg": {"mIoU": 70.0, "IoU-disc": 80.0, "IoU-sky": 60.0},
    }
    words = [line.split() for line in format_scores(results).splitlines()]
    assert ["AP", "AP50"] in words and ["segm", "40.1", "60.0"] in words
    assert ["sem_seg", "70.0"] in words
    words = [line.split() for line in format_classes(results).splitlines()]
    assert words[0] == ["class", "AP", "IoU"]
    assert words[2:] == [["disc", "30.0", "80.0"], ["star", "50.2"], ["sky", "60.0"]]
    assert format_classes({"segm": {"AP": 1.0}}) == ""


def test_the_filters_of_warnings_of_a_program_that_imports_us_stay():
    code = "import warnings as w; before = list(w.filters); import knet; new = w.filters; "
    # what PyTorch itself adds is not about its own deprecations
    code += "print([f for f in new if f not in before and f[1] and 'script' in f[1].pattern])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")
