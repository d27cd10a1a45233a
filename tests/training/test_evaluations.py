"""The best checkpoint, patience, and evaluations that an interruption cut off."""

import json
import logging

import pytest
import torch
from PIL import Image

from knet.training import evaluations
from knet.training.evaluations import main_score
from knet.training.trainer import Trainer

from .output_files import difference

# steps without an optimiser
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")


@pytest.fixture
def scored(tiny_cfg, tmp_path):
    """A config whose evaluations cost nothing: `make` says what they give."""
    tiny_cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 1, "SEED", 5,
                              "TEST.EVAL_PERIOD", 2, "TEST.PICTURES", 0, "SOLVER.MAX_ITER", 10,
                              "OUTPUT_DIR", str(tmp_path / "out")])  # fmt: skip
    return tiny_cfg


@pytest.fixture(autouse=True)
def _quick_curves(monkeypatch):
    """How many lines with scores each picture was made of."""
    monkeypatch.setattr(
        evaluations,
        "draw_curves",
        lambda source, out: out.write_text(str(source.read_text().count("segm/AP50"))),
    )


def make(cfg, scores, *, resume=False):
    """A trainer whose steps cost little and whose evaluation after step n gives `scores[n]`."""
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    told = []

    def test(cfg, model):
        # in the hook before the training, its first step has not begun
        step = trainer.storage.iter + (trainer.storage.iter < cfg.SOLVER.MAX_ITER)
        told.append(min(step, trainer.max_iter))
        return {"segm": {"AP": scores[told[-1]], "AP50": -scores[told[-1]]}}

    def step():
        inner.model.heads.rounds[2].mask_predictor.bias.data.add_(1.0)
        if inner.average is not None:
            inner.average.update(torch.tensor(True))
        inner._pending.append((inner.iter, 0.0, ["loss"], torch.tensor([1.0, 1.0, 0.0])))

    inner = trainer._trainer
    inner.run_step = step
    trainer.steps_an_epoch = 12
    trainer.test = test
    return trainer, told


def files(folder):
    return sorted(path.name for path in folder.glob("*.pth"))


def best(folder):
    return torch.load(folder / "model_best.pth", weights_only=False)


def test_the_best_weights_are_kept(scored, tmp_path):
    scored.SOLVER.EMA = 0.9
    scored.SOLVER.CHECKPOINT_PERIOD = 2
    trainer, told = make(scored, {2: 10.0, 4: 30.0, 6: 20.0, 8: 30.0, 10: 5.0})
    trainer.train()
    assert told == [2, 4, 6, 8, 10]
    out = tmp_path / "out"
    kept = best(out)
    assert kept["best"] == {"metric": "segm/AP", "score": 30.0, "step": 4}
    assert "trainer" not in kept and "classes" in kept
    there = torch.load(out / "model_0000003.pth", weights_only=False)
    assert difference(dict(kept["model"]), dict(there["model"])) == ""
    # it is no checkpoint to resume from
    assert (out / "last_checkpoint").read_text() == "model_final.pth"


def test_another_score_can_be_the_one(scored, tmp_path):
    scored.TEST.BEST_METRIC = "segm/AP50"
    make(scored, {2: 10.0, 4: 30.0, 6: 20.0, 8: 30.0, 10: 15.0})[0].train()
    assert best(tmp_path / "out")["best"] == {"metric": "segm/AP50", "score": -10.0, "step": 2}


def test_patience_ends_in_good_order(scored, tmp_path, caplog):
    scored.TEST.PATIENCE = 2
    scored.SOLVER.MAX_ITER = 20
    scores = {2: 10.0, 4: 30.0, 6: 20.0, 8: 30.0, 20: 99.0}
    trainer, told = make(scored, scores)
    with caplog.at_level(logging.INFO):
        results = trainer.train()
    assert told == [2, 4, 6, 8]
    assert results == {"segm": {"AP": 30.0, "AP50": -30.0}}
    assert (
        "ends after step 8 of 20: in 2 evaluations segm/AP has not risen above the 30.00 of step 4"
        in caplog.text
    )
    assert "model_final.pth" in caplog.text
    out = tmp_path / "out"
    final = torch.load(out / "model_final.pth", weights_only=False)
    assert final["iteration"] == 7 and best(out)["best"]["step"] == 4
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert {line["iteration"] for line in lines if "segm/AP" in line} == {1, 3, 5, 7}
    assert (out / "curves.png").read_text() == "4"  # also the last one

    # resumed, it is still over; with more patience it goes on
    again, told = make(scored, scores, resume=True)
    again.train()
    assert told == [] and again.iter == 8
    scored.TEST.PATIENCE = 3
    scores = {10: 40.0, 12: 41.0, 14: 42.0, 16: 43.0, 18: 44.0, 20: 45.0}
    on, told = make(scored, scores, resume=True)
    on.train()
    assert told == [10, 12, 14, 16, 18, 20] and best(out)["best"]["score"] == 45.0


def test_an_evaluation_that_was_cut_off_is_made_up_for(scored, tmp_path):
    scored.TEST.PATIENCE = 2
    scores = {2: 30.0, 4: 10.0, 6: 20.0}
    trainer, told = make(scored, scores)
    test = trainer.test

    def cut_off(cfg, model):
        if trainer.iter == 3:
            raise ZeroDivisionError
        return test(cfg, model)

    trainer.test = cut_off
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    again, told = make(scored, scores, resume=True)
    assert again.start_iter == 4
    again.train()
    assert told == [4, 6] and again.iter == 6  # both count
    assert best(tmp_path / "out")["best"]["step"] == 2
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    assert {
        line["iteration"]: line["segm/AP"] for line in map(json.loads, lines) if "segm/AP" in line
    } == {1: 30.0, 3: 10.0, 5: 20.0}


def test_all_processes_end_together(scored, monkeypatch):
    """Another process than the main one has no results, but the same patience."""
    scored.TEST.PATIENCE = 1
    trainer, _ = make(scored, {})
    hook = next(h for h in trainer._hooks if isinstance(h, evaluations.Evaluations))
    monkeypatch.setattr(evaluations.comm, "all_gather", lambda mine: [("segm/AP", 5.0), mine])
    monkeypatch.setattr(trainer.checkpointer, "save_to_disk", False)
    hook._compare({}, 2)
    hook._compare({}, 4)
    assert (hook._best, hook._best_step, hook._without) == (5.0, 2, 1)
    with pytest.raises(evaluations.PatienceEnded):
        hook._end_without_patience(4)


def test_main_scores():
    results = {"sem_seg": {"mIoU": 40.0}, "segm": {"AP": 20.0, "AP-disc": 1.0}}
    assert main_score(results, ["a"]) == ("segm/AP", 20.0)
    assert main_score(results, ["a"], "sem_seg/mIoU") == ("sem_seg/mIoU", 40.0)
    assert main_score({"a": {"box": {"AP": 1.0}}, "b": results}, ["b", "a"]) == ("segm/AP", 20.0)
    assert main_score({"box": {"AP": 1.0}}, ["a"]) is None
    with pytest.raises(ValueError, match=r"BEST_METRIC is segm/PQ.*sem_seg/mIoU, segm/AP, and"):
        main_score(results, ["a"], "segm/PQ")


@pytest.mark.slow
def test_pictures_of_an_evaluation(scored, tmp_path):
    scored.TEST.PICTURES, scored.TEST.EVAL_PERIOD, scored.SOLVER.MAX_ITER = 3, 1, 2
    trainer = Trainer(scored)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert {"panoptic_seg", "segm", "sem_seg"} <= set(results)
    pictures = sorted((tmp_path / "out" / "pictures").iterdir())
    assert [path.name for path in pictures] == ["step_0000001.jpg", "step_0000002.jpg"]
    first, second = (Image.open(path) for path in pictures)
    # three columns of scenes of 96 pixels, enlarged to 384, and three rows
    assert first.size == second.size == (3 * 392 + 8, 3 * (384 + 40))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "out"), {"images": 0}).Reload()
    assert [event.step for event in board.Images("validation")] == [0, 2]
