"""The command line, as a user types it."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import knet_command

from .processes import Program

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blank_curves")]

ROOT = Path(__file__).parents[1]


def start(*arguments, env, launcher=()):
    """In a new Python: what depends on its start."""
    command = [sys.executable, *launcher, "train_net.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "KNET_TRACEBACK": "", **env},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """In a process of its own: what other tests would be in the way of."""

    def call(*arguments, env):
        program = Program(tmp_path, ROOT / "train_net.py", *arguments, KNET_TRACEBACK="", **env)
        try:
            status = program.wait(300)
        finally:
            program.kill()
        return SimpleNamespace(returncode=status, stdout=program.out, stderr=program.err)

    return call


@pytest.fixture
def run_here(monkeypatch, capfd):
    """In this process, which need not import everything again."""

    def call(*arguments, env):
        for name, value in {"KNET_TRACEBACK": "", **env}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["train_net.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "train_net.py"), run_name="__main__")
        said = capfd.readouterr()
        return SimpleNamespace(returncode=end.value.code, stdout=said.out, stderr=said.err)

    return call


def refusal(done):
    """The one line of an error that is meant for the user."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("train_net.py: error: ")
    return line


@pytest.fixture
def data(tiny_shapes, tmp_path):
    """A data folder whose `shapes` are the tiny ones."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "shapes").symlink_to(tiny_shapes)
    return {"DETECTRON2_DATASETS": str(root)}


CONFIG = ("--config-file", "configs/shapes/panoptic.yaml")


def test_train_evaluate_and_refuse_foreign_weights(data, tiny_opts, tmp_path, run, run_here):
    done = run(*CONFIG, "--num-gpus", 2, *tiny_opts, env=data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("step 6 of 6  epoch 2.0  0:00:00 left", done.stdout)
    out = tmp_path / "out"
    scores = json.loads((out / "metrics.json").read_text().splitlines()[-1])
    assert {"panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU"} <= set(scores)
    assert list(out.glob("events.out.tfevents.*"))

    again = [*tiny_opts, "MODEL.WEIGHTS", out / "model_final.pth"]
    evaluated = run_here(*CONFIG, "--eval-only", *again, env=data)
    assert evaluated.returncode == 0, evaluated.stderr
    assert scores["sem_seg/mIoU"] > 0
    assert re.search(rf"sem_seg +{scores['sem_seg/mIoU']:.1f} ", evaluated.stdout)

    sheets = tmp_path / "sheets"
    words = (*CONFIG, "--dataset", "shapes_val", "--num", 2, "--output", sheets, *again)
    assert knet_command.main(["predict", *map(str, words)]) == 0
    assert len(list(sheets.glob("*.png"))) == 2

    foreign = run_here(*CONFIG, "--eval-only", *again, "MODEL.KNET.NUM_KERNELS", 9, env=data)
    assert re.search("checkpoint of another model.*init_kernels", refusal(foreign))


def test_semantic_model(data, tiny_opts, tmp_path, run_here):
    config = ("--config-file", "configs/shapes/semantic.yaml")
    # one view of the test size is the plain image, and scores as it does
    opts = [*tiny_opts, "MODEL.KNET.SEMANTIC.AUX_DIM", 16, "TEST.AUG.ENABLED", True,
            "TEST.AUG.MIN_SIZES", "(96,)", "TEST.AUG.FLIP", False]  # fmt: skip
    done = run_here(*config, *opts, env=data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Evaluation with test-time augmentation" in done.stdout
    out = tmp_path / "out"
    scores = {}
    for line in (out / "metrics.json").read_text().splitlines():
        scores.update(json.loads(line))
    assert scores["sem_seg/mIoU"] > 0
    assert scores["sem_seg_TTA/mIoU"] == pytest.approx(scores["sem_seg/mIoU"])
    assert {"loss_init_seg", "loss_round3_seg", "loss_auxiliary_seg"} <= set(scores)

    expected = [[task, "mIoU", scores["sem_seg/mIoU"], 0.01] for task in ("sem_seg", "sem_seg_TTA")]
    evaluated = run_here(
        *config, "--eval-only", *opts, "MODEL.WEIGHTS", out / "model_final.pth",
        "TEST.EXPECTED_RESULTS", expected, env=data,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "Results verification passed" in evaluated.stdout


def test_torchrun(data, tiny_opts):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = start(
        *CONFIG, *tiny_opts, "SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()", env=data,
        launcher=launcher,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2 of 2" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "name a config with --config-file"),
        (("--config-file", "configs/none.yaml"), "configs/none.yaml"),
        ((*CONFIG, "MODEL.KNET.KERNELS", "3"), "KERNELS"),
        ((*CONFIG, "DATASETS.TRAIN", "('nowhere',)"), "'nowhere'"),
        ((*CONFIG, "MODEL.KNET.NUM_THING_CLASSES", "80"), "80, but 'shapes_train'"),
        ((*CONFIG, "MODEL.WEIGHTS", "lost.pth"), "lost.pth: no such checkpoint"),
    ],
)  # fmt: skip
def test_bad_input_is_named(data, tmp_path, arguments, message, run_here):
    opts = ("OUTPUT_DIR", tmp_path / "out") if arguments else ()
    done = run_here(*arguments, *opts, env=data)
    assert message in refusal(done)


def test_missing_data_folder_is_named(tmp_path):
    done = start(  # Detectron2 asks for the folder as it is imported
        "--config-file", "configs/coco/panoptic/knet_r50_fpn_1x.yaml", "MODEL.WEIGHTS", "",
        "OUTPUT_DIR", tmp_path / "out", env={"DETECTRON2_DATASETS": str(tmp_path / "none")},
    )  # fmt: skip
    assert str(tmp_path / "none") in refusal(done)


def test_checkpoint_of_nothing_in_common_is_refused(data, tiny_opts, tmp_path, run_here):
    torch.save({"model": {"some.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    done = run_here(*CONFIG, *tiny_opts, "MODEL.WEIGHTS", tmp_path / "other.pth", env=data)
    assert re.search("other.pth.*some.weight", refusal(done))


def test_error_in_training_is_one_line_and_the_trace_is_in_the_log(data, tiny_opts, tmp_path, run):
    opts = (*tiny_opts, "SOLVER.BASE_LR", 1e30, "SOLVER.WARMUP_FACTOR", 1.0, "DATASETS.TEST", "()")
    done = run(*CONFIG, *opts, env=data)
    assert "Traceback" not in done.stdout
    assert refusal(done).startswith("train_net.py: error: losses became infinite")
    assert "Traceback" in (tmp_path / "out" / "log.txt").read_text()
