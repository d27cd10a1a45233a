"""When checkpoints are written; resuming with another config: which keys act, which stay."""

import logging
import signal
from pathlib import Path

import pytest
import torch

from knet.training.checkpoints import format_changes, training_keys
from knet.training.optimizer import build_optimizer, resume_optimizer
from knet.training.stop import Stopped
from knet.training.trainer import Trainer


def make(cfg, folder, *, resume=False):
    cfg.OUTPUT_DIR = str(folder)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def in_step(trainer, step, action):
    """Have something happen in the middle of a step."""
    run_step = trainer._trainer.run_step

    def run():
        if trainer.iter == step:
            action()
        run_step()

    trainer._trainer.run_step = run


def send(*numbers):
    for number in numbers:
        signal.raise_signal(number)  # to this thread: two on the way to a process become one


def files(folder):
    return sorted(path.name for path in Path(folder).glob("*.pth"))


def final(folder):
    return torch.load(Path(folder) / "model_final.pth", weights_only=False)["model"]


@pytest.mark.slow
def test_checkpoints_between_change_no_weight_and_are_few(cfg, tmp_path):
    cfg.SOLVER.CHECKPOINT_MINUTES = 0.0
    make(cfg, tmp_path / "without").train()
    assert files(tmp_path / "without") == ["model_final.pth"]

    # also without any by time
    cfg.TEST.EVAL_PERIOD = 4
    make(cfg, tmp_path / "evaluated").train()
    assert files(tmp_path / "evaluated") == ["model_0000003.pth", "model_final.pth"]

    cfg.TEST.EVAL_PERIOD = 0
    cfg.SOLVER.CHECKPOINT_MINUTES = 1e-6
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    trainer = make(cfg, tmp_path / "with")
    in_step(trainer, 4, lambda: send(signal.SIGTERM))
    with pytest.raises(Stopped):
        trainer.train()
    # all of the periods, two of the three between
    kept = ["model_0000001.pth", "model_0000002.pth", "model_0000003.pth", "model_0000004.pth"]
    assert files(tmp_path / "with") == kept
    resumed = make(cfg, tmp_path / "with", resume=True)
    assert resumed.start_iter == 5
    resumed.train()
    without, with_ = final(tmp_path / "without"), final(tmp_path / "with")
    assert all(torch.equal(with_[name], value) for name, value in without.items())


def test_a_new_training_over_an_earlier_one_is_warned_of(cfg, tmp_path, caplog):
    first = make(cfg, tmp_path)
    assert "earlier training" not in caplog.text
    first.max_iter = 1
    first.train()
    make(cfg, tmp_path, resume=True)
    assert "earlier training" not in caplog.text
    (tmp_path / "last_checkpoint").unlink()  # as after a kill
    make(cfg, tmp_path)
    said = caplog.records[-1].getMessage()
    assert said.startswith(f"{tmp_path} holds checkpoints of an earlier training")
    assert "--resume" in said


@pytest.fixture
def checkpoint(tiny_cfg, tmp_path):
    """The folder of a training that stopped after 3 of 6 steps."""
    tiny_cfg.DATASETS.TEST = ()
    tiny_cfg.SOLVER.WARMUP_ITERS = 2
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "out")
    short = tiny_cfg.clone()
    trainer = Trainer(short)
    trainer.resume_or_load(resume=False)
    trainer.max_iter = 3
    trainer.train()
    return trainer


def resumed(cfg):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    return trainer


def moments(trainer):
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    state = trainer.optimizer.state
    return {names[id(p)]: value["exp_avg_sq"].clone() for p, value in state.items()}


def rates(trainer):
    return {group["lr"] for group in trainer.optimizer.param_groups}


def same(one, two):
    return set(one) == set(two) and all(
        torch.equal(value, two[name]) for name, value in one.items()
    )


def test_the_config_of_the_resumed_run_counts(checkpoint, tiny_cfg, caplog):
    before = rates(checkpoint), moments(checkpoint)
    unchanged = resumed(tiny_cfg)
    assert "another config" not in caplog.text
    assert (rates(unchanged), unchanged.start_iter) == (before[0], 3)
    assert same(moments(unchanged), before[1])

    tiny_cfg.merge_from_list(["SOLVER.BASE_LR", 1e-4, "SOLVER.WEIGHT_DECAY", 0.2, "SEED", 77,
                              "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5])  # fmt: skip
    lower = resumed(tiny_cfg)
    assert max(rates(lower)) == pytest.approx(max(before[0]) / 10)
    assert {g["weight_decay"] for g in lower.optimizer.param_groups} == {0.2}
    assert lower._trainer.clip_norm == 0.5
    assert lower._trainer.seed == checkpoint._trainer.seed  # the order of the data stays
    assert same(moments(lower), before[1])
    said = caplog.text
    assert "SOLVER.BASE_LR                    0.001 -> 0.0001  from this step on" in said
    assert "SEED                              2 -> 77          kept" in said
    lower.train()
    assert lower.iter == 6

    # another division into groups: moments follow the names
    caplog.clear()
    tiny_cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5
    tiny_cfg.SOLVER.NO_DECAY = ["*norm*"]
    tiny_cfg.SOLVER.MAX_ITER = 8
    other = resumed(tiny_cfg)
    assert len(other.optimizer.param_groups) == 4
    assert same(moments(other), moments(lower))
    full, half = sorted(rates(other), reverse=True)
    assert half == pytest.approx(full / 2)
    assert full == pytest.approx(other.scheduler.get_lr()[-1])
    assert "SOLVER.MAX_ITER             6 -> 8" in caplog.text

    tiny_cfg.SOLVER.MAX_ITER = 4
    with pytest.raises(ValueError, match=r"6 steps behind it, more than SOLVER\.MAX_ITER 4"):
        resumed(tiny_cfg)


def test_a_lower_rate_rescues_a_training_that_diverged(checkpoint, tiny_cfg):
    diverging = resumed(tiny_cfg)
    before = {name: p.detach().clone() for name, p in diverging.model.named_parameters()}
    bias = diverging.model.heads.rounds[2].mask_predictor.bias
    bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"gradient norm.*--resume.*SOLVER\.BASE_LR"):
        diverging.train()
    assert same(before, dict(diverging.model.named_parameters()))
    tiny_cfg.SOLVER.BASE_LR = 1e-5
    rescued = resumed(tiny_cfg)
    assert rescued.start_iter == 3 and max(rates(rescued)) <= 1e-5


def test_old_checkpoints_resume(tiny_cfg, caplog):
    """Of before names and config were recorded."""
    trainer = Trainer(tiny_cfg)
    state = trainer.state_dict()
    del state["config"]
    for group in state["_trainer"]["optimizer"]["param_groups"]:
        del group["param_names"]
    with caplog.at_level(logging.WARNING):
        Trainer(tiny_cfg).load_state_dict(state)
    assert "another config" not in caplog.text
    tiny_cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5
    with pytest.raises(ValueError, match=r"SOLVER\.BACKBONE_MULTIPLIER.*as they were"):
        Trainer(tiny_cfg).load_state_dict(state)


def test_parameters_that_were_frozen_start_without_moments(tiny_cfg, caplog):
    model = Trainer.build_model(tiny_cfg)
    model.backbone.stem.requires_grad_(False)
    frozen = build_optimizer(tiny_cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    frozen.step()
    model.backbone.stem.requires_grad_(True)
    free = build_optimizer(tiny_cfg, model)
    resume_optimizer(free, frozen.state_dict())
    assert "backbone.stem.conv1.weight" in caplog.text
    assert not free.state.get(model.backbone.stem.conv1.weight)
    moment = free.state[model.heads.rounds[0].mask_predictor.bias]["exp_avg"]
    assert torch.equal(moment, frozen.state[model.heads.rounds[0].mask_predictor.bias]["exp_avg"])


def test_every_solver_key_has_an_answer(tiny_cfg):
    newer = {"BASE_LR_END": 0.0, "NUM_DECAYS": 3, "RESCALE_INTERVAL": False}  # after v0.6
    for key, value in newer.items():
        if key not in tiny_cfg.SOLVER:
            tiny_cfg.SOLVER[key] = value
    then = training_keys(tiny_cfg)
    silent = {"CHECKPOINT_PERIOD", "CHECKPOINT_MINUTES", "REFERENCE_WORLD_SIZE",
              "REFERENCE_BATCH"}  # fmt: skip
    solver = {key.split(".")[1] for key in then if key.startswith("SOLVER.")}
    assert solver == set(tiny_cfg.SOLVER) - silent
    assert {"SOLVER.MOMENTUM", "SOLVER.AMP.DTYPE", "INPUT.MIN_SIZE_TRAIN", "SEED",
            "DATASETS.TRAIN", "MODEL.KNET.LOSS.MASK_WEIGHT"} <= set(then)  # fmt: skip
    assert not {"SOLVER.CHECKPOINT_PERIOD", "INPUT.MIN_SIZE_TEST", "OUTPUT_DIR"} & set(then)
    changed = dict.fromkeys(then, "other")
    lines = format_changes(changed, then).splitlines()
    assert len(lines) == len(then) and all(len(line.split("  ")[-1]) > 10 for line in lines)
    said = {line.split()[0]: line for line in lines}
    assert "no effect" in said["SOLVER.MOMENTUM"]
    assert all("new schedule" in said[f"SOLVER.{key}"] for key in newer)
    assert format_changes(then, {**then, "SOLVER.NEW": 1}) == ""
