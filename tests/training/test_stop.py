"""Signals end a training after a step, with a checkpoint; and one training a folder."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from knet.errors import UserError
from knet.training.stop import Stopped, folder_lock
from knet.training.trainer import Trainer

from ..processes import Program
from .test_checkpoints import files, in_step, make, send


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_signal_ends_with_a_checkpoint_after_the_step(cfg, tmp_path, caplog, number, status):
    before = signal.getsignal(number)
    trainer = make(cfg, tmp_path)
    in_step(trainer, 2, lambda: send(number))
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == status
    assert signal.getsignal(number) is before
    assert files(tmp_path) == ["model_0000002.pth"]
    (line,) = (r.getMessage() for r in caplog.records if "Stopped" in r.getMessage())
    assert line.endswith(f"after step 3 of 6; --resume goes on from {tmp_path}/model_0000002.pth")
    assert make(cfg, tmp_path, resume=True).start_iter == 3


@pytest.fixture
def start(cfg, tiny_shapes, tmp_path):
    """Starts a job of `stop_driver.py`, which trains with `cfg` into the test's folder."""
    split = tiny_shapes / "train"
    cfg.DATASETS.TRAIN = ("their_train",)
    cfg.DATASETS.CUSTOM = [
        {"NAME": "their_train", "FORMAT": "coco_panoptic", "IMAGE_ROOT": str(split / "images"),
         "PANOPTIC_ROOT": str(split / "panoptic"), "PANOPTIC_JSON": str(split / "panoptic.json"),
         "INSTANCES_JSON": str(split / "instances.json"),
         "SEM_SEG_ROOT": str(split / "semantic")},
    ]  # fmt: skip
    jobs = []

    def run(job):
        (tmp_path / "config.yaml").write_text(cfg.dump())
        driver = Path(__file__).with_name("stop_driver.py")
        jobs.append(Program(tmp_path, driver, job, tmp_path))
        return jobs[0]

    yield run
    for job in jobs:
        job.kill()


@pytest.mark.slow
def test_second_interrupt_ends_at_once(start, tmp_path):
    job = start("second_interrupt")
    assert job.wait(120) == -signal.SIGINT, job.err
    assert not files(tmp_path)


@pytest.mark.slow
def test_signal_to_the_whole_group_spares_the_loader(cfg, start, tmp_path):
    cfg.DATALOADER.NUM_WORKERS = 1
    cfg.SOLVER.IMS_PER_BATCH = cfg.SOLVER.ACCUMULATION_STEPS = 6  # more than are read ahead
    job = start("whole_group")
    while "in the step" not in job.out and job.is_alive():
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGTERM)
    assert job.wait(120) == 143, job.err
    assert files(tmp_path) == ["model_0000001.pth"]


def test_signal_ends_an_evaluation_at_once(cfg, tmp_path, monkeypatch):
    cfg.SOLVER.MAX_ITER = 1
    cfg.DATASETS.TEST = ("tiny_val",)

    def evaluate(_cfg, _name, _folder=None):
        send(signal.SIGTERM)
        raise AssertionError("goes on")

    monkeypatch.setattr(Trainer, "build_evaluator", evaluate)
    with pytest.raises(Stopped):
        make(cfg, tmp_path).train()
    assert files(tmp_path) == ["model_final.pth"]


def _refusal(folder):
    """What another process is told that wants the folder, or nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            with folder_lock(folder):
                pass
        except UserError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader) as answer:
        return answer.read()


def test_one_training_a_folder(tmp_path):
    folder = str(tmp_path / "out")
    with folder_lock(folder):
        holder = f"{folder}: another training writes there (process {os.getpid()} on "
        assert _refusal(folder).startswith(holder)
        with folder_lock(folder):  # train_net.py and the trainer
            pass
        assert _refusal(folder).startswith(holder)
    assert not _refusal(folder)


def test_a_trainer_locks_its_folder(cfg, tmp_path, monkeypatch):
    """Also without train_net.py."""
    answers = []
    trainer = make(cfg, tmp_path)
    trainer.max_iter = 1
    in_step(trainer, 0, lambda: answers.append(_refusal(str(tmp_path))))
    remove = "knet.training.trainer.remove_unfinished"
    monkeypatch.setattr(remove, lambda folder, _: answers.append(_refusal(folder)))
    trainer.resume_or_load(resume=False)  # where another one may be writing
    trainer.train()
    assert len(answers) == 5 and all("another training writes there" in a for a in answers)
    assert not _refusal(str(tmp_path))


@pytest.mark.parametrize("missing", [False, True])
def test_locks_that_are_not_there_are_named(tmp_path, monkeypatch, caplog, missing):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    if missing:  # on Windows
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:  # of a file system
        monkeypatch.setattr("fcntl.lockf", refuse)
    with folder_lock(str(tmp_path)):
        assert f"{tmp_path}: no locks here (" in caplog.text
