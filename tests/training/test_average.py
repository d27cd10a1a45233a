"""The moving average of the weights: its values, what is saved of it, and how it is resumed."""

import math

import pytest
import torch

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.training.average import WeightAverage
from knet.training.trainer import Trainer

from .output_files import difference

TAKEN, LEFT_OUT = torch.tensor(True), torch.tensor(False)


def test_values_by_hand():
    model = torch.nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = WeightAverage(model, 0.15)
        expected = 1.0
        for t, value in enumerate((3.0, 5.0, -7.0)):
            model.weight.fill_(value)
            average.update(TAKEN)
            decay = min(0.15, (1 + t) / (10 + t))
            expected = decay * expected + (1 - decay) * value
    with average.swapped():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == -7.0
    state, trained = average.split(model.state_dict())
    assert state["weight"].item() == pytest.approx(expected) and "bias" in state
    assert list(trained["weights"]) == ["weight"] and trained["steps"] == 3


def test_a_step_that_was_left_out_changes_nothing():
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    before = average.split(model.state_dict())[0]["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1)
    average.update(LEFT_OUT)
    assert torch.equal(average.split(model.state_dict())[0]["weight"], before)
    average.update(TAKEN)
    assert not torch.equal(average.split(model.state_dict())[0]["weight"], before)


def test_weights_come_back_exactly_after_an_error():
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.mul_(math.pi)
    weight = model.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), average.swapped():
        assert not torch.equal(model.weight, weight)
        raise ZeroDivisionError
    assert torch.equal(model.weight, weight)


def make(cfg, folder, *, resume=False):
    cfg.OUTPUT_DIR = str(folder)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def saved(folder):
    return torch.load(folder / "model_final.pth", weights_only=False)


def test_resumed_equals_uninterrupted(cfg, tmp_path, monkeypatch):
    cfg.SOLVER.EMA = 0.99
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.SOLVER.MAX_ITER = 5
    make(cfg, tmp_path / "whole").train()

    first = make(cfg, tmp_path / "parts")
    run_step = first._trainer.run_step

    def interrupted():
        if first.iter == 3:
            raise ZeroDivisionError
        run_step()

    first._trainer.run_step = interrupted
    with pytest.raises(ZeroDivisionError):
        first.train()
    second = make(cfg, tmp_path / "parts", resume=True)
    assert second.start_iter == 2 and second.checkpointer.average.steps == 2
    second.train()
    whole, parts = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert difference(whole["model"], parts["model"]) == ""
    assert difference(whole["trained"], parts["trained"]) == ""
    assert difference(whole["trainer"]["_trainer"], parts["trainer"]["_trainer"]) == ""
    name = "heads.rounds.2.mask_predictor.bias"
    assert not torch.equal(whole["model"][name], whole["trained"]["weights"][name])

    # whoever reads the file gets the average
    model = Trainer.build_model(cfg)
    KNetCheckpointer(model, strict=True).load(str(tmp_path / "whole" / "model_final.pth"))
    assert torch.equal(dict(model.named_parameters())[name], whole["model"][name])
    # also who looks for the newest checkpoint to score it
    model = Trainer.build_model(cfg)
    KNetCheckpointer(model, str(tmp_path / "whole"), strict=True).resume_or_load("", resume=True)
    assert torch.equal(dict(model.named_parameters())[name], whole["model"][name])


def test_an_average_may_come_and_go(cfg, tmp_path):
    cfg.SOLVER.MAX_ITER = 1
    make(cfg, tmp_path).train()
    cfg.SOLVER.EMA, cfg.SOLVER.MAX_ITER = 0.9, 2
    with_average = make(cfg, tmp_path, resume=True)  # of a checkpoint without
    assert with_average.checkpointer.average.steps == 0
    plain = saved(tmp_path)["model"]
    averages, _ = with_average.checkpointer.average.split(with_average.model.state_dict())
    assert difference(dict(averages), dict(plain)) == ""
    with_average.train()
    cfg.SOLVER.EMA, cfg.SOLVER.MAX_ITER = 0.0, 3
    without = make(cfg, tmp_path, resume=True)
    trained = saved(tmp_path)["trained"]["weights"]
    ours = {name: p.detach() for name, p in without.model.named_parameters()}
    assert difference(ours, dict(trained)) == ""


def test_what_is_evaluated_is_the_average(cfg, tmp_path):
    cfg.SOLVER.EMA, cfg.SOLVER.MAX_ITER = 0.9, 3
    trainer = make(cfg, tmp_path)
    seen = []
    trainer.test = lambda cfg, model: seen.append(
        {name: p.detach().clone() for name, p in model.named_parameters()}
    ) or {}  # fmt: skip
    trainer.train()
    final = saved(tmp_path)
    (evaluated,) = seen
    assert difference(evaluated, {name: final["model"][name] for name in evaluated}) == ""
    ours = {name: p.detach() for name, p in trainer.model.named_parameters()}
    assert difference(ours, dict(final["trained"]["weights"])) == ""


def test_a_damaged_average_is_told(cfg, tmp_path):
    cfg.SOLVER.EMA, cfg.SOLVER.MAX_ITER = 0.9, 1
    trainer = make(cfg, tmp_path)
    content = {"model": dict(trainer.model.state_dict()), "trained": {"steps": 1}}
    with pytest.raises(ValueError, match=r"x\.pth: its entry `trained` is damaged"):
        trainer.checkpointer._resume("x.pth", content)
