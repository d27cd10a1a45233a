"""Groups of parameters, schedules, and numbers that depend on the processes."""

import itertools
import logging

import pytest
import torch

from knet.config import get_cfg_from_file
from knet.training.optimizer import (
    build_optimizer,
    rate_origin,
    resume_optimizer,
    scale_to_batch,
    scale_to_processes,
    scaled_rate,
)
from knet.training.trainer import Trainer


def decays(cfg, model=None):
    """Weight decay by name."""
    model = model or Trainer.build_model(cfg)
    groups = build_optimizer(cfg, model).param_groups
    return {name: g["weight_decay"] for g in groups for name in g["param_names"]}


def test_norms_and_biases_decay_as_in_detectron2(tiny_cfg):
    model = Trainer.build_model(tiny_cfg)
    names = [name for name, _ in model.named_parameters()]
    norms = {
        f"{name}.{p}"
        for name, m in model.named_modules()
        if isinstance(m, (torch.nn.BatchNorm2d, torch.nn.GroupNorm, torch.nn.LayerNorm))
        for p, _ in m.named_parameters(recurse=False)
    }
    biases = {name for name in names if name.rpartition(".")[2] == "bias"}
    assert len(norms) > 20 and biases - norms and biases & norms
    # as published, and not with Detectron2's default of 0.0 for norms
    assert tiny_cfg.SOLVER.WEIGHT_DECAY_NORM is None is tiny_cfg.SOLVER.WEIGHT_DECAY_BIAS
    assert decays(tiny_cfg, model) == dict.fromkeys(names, 0.05)

    tiny_cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    assert decays(tiny_cfg, model) == {n: 0.0 if n in norms else 0.05 for n in names}
    tiny_cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.01
    both = {n: 0.01 if n in biases else 0.0 if n in norms else 0.05 for n in names}
    assert decays(tiny_cfg, model) == both
    tiny_cfg.SOLVER.NO_DECAY = ["heads.kernel_head.*weight"]
    kernels = {n for n in names if n.startswith("heads.kernel_head.") and n.endswith("weight")}
    assert len(kernels) > 1
    assert decays(tiny_cfg, model) == {**both, **dict.fromkeys(kernels, 0.0)}


def test_decay_acts_on_the_weights(tiny_cfg):
    """AdamW without a gradient: weights shrink by rate times decay."""
    tiny_cfg.SOLVER.WEIGHT_DECAY_NORM, tiny_cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.5, 0.0
    model = Trainer.build_model(tiny_cfg)
    optimizer = build_optimizer(tiny_cfg, model)
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.GroupNorm))
    conv = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad():
        norm.bias.fill_(1.0)
    before = [p.detach().clone() for p in (norm.weight, norm.bias, conv.weight)]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    rate = tiny_cfg.SOLVER.BASE_LR
    for p, old, decay in zip((norm.weight, norm.bias, conv.weight), before, (0.5, 0.0, 0.05)):
        torch.testing.assert_close(p.detach(), old * (1 - rate * decay))


@pytest.mark.parametrize(
    "key, of", [("WEIGHT_DECAY_NORM", "weight"), ("WEIGHT_DECAY_BIAS", "bias")]
)
def test_keys_that_contradict_are_named(tiny_cfg, key, of):
    tiny_cfg.SOLVER.NO_DECAY = [f"heads.*norm*.{of}"]
    tiny_cfg.SOLVER[key] = 0.0
    assert 0.0 in decays(tiny_cfg).values()
    tiny_cfg.SOLVER[key] = 0.05  # as WEIGHT_DECAY, but said of these
    with pytest.raises(ValueError, match=rf"NO_DECAY names heads\..*norm.*{of}, .*SOLVER\.{key}"):
        decays(tiny_cfg)


def test_moments_follow_the_names_into_other_groups(tiny_cfg):
    model = Trainer.build_model(tiny_cfg)
    before = build_optimizer(tiny_cfg, model)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before.step()
    tiny_cfg.SOLVER.WEIGHT_DECAY_NORM, tiny_cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0, 0.01
    after = build_optimizer(tiny_cfg, model)
    assert len(after.param_groups) == 3 * len(before.param_groups)
    resume_optimizer(after, before.state_dict())
    for p in model.parameters():
        assert torch.equal(after.state[p]["exp_avg"], before.state[p]["exp_avg"])
    assert {g["weight_decay"] for g in after.param_groups} == {0.0, 0.01, 0.05}


def test_backbone_learns_at_its_own_rate(tiny_cfg, caplog):
    tiny_cfg.SOLVER.BASE_LR = 0.01
    tiny_cfg.SOLVER.BACKBONE_MULTIPLIER = 0.25
    tiny_cfg.MODEL.BACKBONE.NAME = "build_small_resnet_fpn_backbone"
    tiny_cfg.MODEL.KNET.IN_FEATURES = ["p1", "p2", "p3", "p4"]
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(tiny_cfg)
    assert "SOLVER.BASE_LR is 0.01" in caplog.text
    groups = {g["initial_lr"]: g["params"] for g in trainer._trainer.optimizer.param_groups}
    assert set(groups) == {0.01, 0.0025}
    model = trainer._trainer.model
    slow = {id(p) for p in groups[0.0025]}
    assert slow == {id(p) for p in model.backbone.bottom_up.parameters()}
    assert id(model.backbone.fpn_lateral1.weight) not in slow
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert {g["weight_decay"] for g in trainer._trainer.optimizer.param_groups} == {0.05}


def test_polynomial_schedule(tiny_cfg):
    tiny_cfg.merge_from_list(
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.POLY_LR_POWER", 0.5,
         "SOLVER.BASE_LR", 0.001, "SOLVER.MAX_ITER", 100, "SOLVER.WARMUP_ITERS", 10,
         "SOLVER.WARMUP_FACTOR", 0.1]
    )  # fmt: skip
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.001)
    scheduler = Trainer.build_lr_scheduler(tiny_cfg, optimizer)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.0001)
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert rates[36] == pytest.approx(0.001 * 0.64**0.5)
    assert rates[99] == pytest.approx(0.001 * 0.01**0.5)


def test_numbers_that_are_multiplied_are_said(caplog):
    cfg = get_cfg_from_file(
        "configs/coco/instance/knet_r50_fpn_1x_1gpu.yaml", ["SOLVER.MAX_ITER", 400]
    )
    scaled = scale_to_processes(cfg, 1)
    assert (scaled.SOLVER.MAX_ITER, scaled.SOLVER.WARMUP_ITERS) == (3200, 8000)
    (line,) = [text for text in caplog.messages if "REFERENCE_WORLD_SIZE" in text]
    assert "SOLVER.MAX_ITER 400 -> 3200, SOLVER.WARMUP_ITERS 1000 -> 8000" in line
    assert "SOLVER.IMS_PER_BATCH 16 -> 2" in line and "set it to 0" in line
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=scaled.SOLVER.BASE_LR)
    Trainer.build_lr_scheduler(scaled, optimizer)
    assert "warm-up takes 3200 of 3200 steps" in caplog.text and "never reaches" in caplog.text
    caplog.clear()
    assert scale_to_processes(cfg, 8).SOLVER.MAX_ITER == 400
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    assert scale_to_processes(cfg, 1).SOLVER.MAX_ITER == 400
    assert not caplog.messages
    Trainer.build_lr_scheduler(cfg, optimizer)
    assert "warm-up takes 400 of 400 steps" in caplog.text
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH = 8, 4
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 4.*REFERENCE_WORLD_SIZE"):
        scale_to_processes(cfg, 1)


def test_the_rate_goes_with_the_square_root_of_the_batch(tiny_cfg):
    assert scaled_rate(1e-4, 16, 4) == pytest.approx(5e-5)
    assert scale_to_batch(tiny_cfg) is tiny_cfg  # the rate as it stands
    tiny_cfg.merge_from_list(["SOLVER.REFERENCE_BATCH", 16, "SOLVER.BASE_LR", 1e-4])
    tiny_cfg.freeze()
    scaled = scale_to_batch(tiny_cfg)
    assert pytest.approx(5e-5) == scaled.SOLVER.BASE_LR and scaled.is_frozen()
    assert tiny_cfg.SOLVER.BASE_LR == 1e-4
    assert rate_origin(tiny_cfg, scaled) == ", scaled from 0.0001 for the batch of 16"
    assert scale_to_batch(scaled) is scaled and rate_origin(scaled, scaled) == ""
    trainer = Trainer(tiny_cfg)
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {
        scaled.SOLVER.BASE_LR
    }
