"""AdamW with its own learning rate for the backbone, its schedules, and how both go on."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import detectron2.solver
import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import nn

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: Any) -> torch.optim.AdamW:
    """AdamW over all trainable parameters.

    Weight decay is on all of them, as published for ResNets, but for those that SOLVER.NO_DECAY
    names. Parameters of the backbone (not of its FPN) learn at SOLVER.BACKBONE_MULTIPLIER times
    the rate.

    Raises:
        ValueError: a pattern of SOLVER.NO_DECAY that names no parameter.
    """
    if cfg.SOLVER.BASE_LR > 1e-3:
        logger.warning(
            "SOLVER.BASE_LR is %g: AdamW on K-Net diverges above about 1e-3; published is 1e-4",
            cfg.SOLVER.BASE_LR,
        )
    backbone = getattr(model.backbone, "bottom_up", model.backbone)
    in_backbone = {id(p) for p in backbone.parameters()}
    patterns = list(cfg.SOLVER.NO_DECAY)
    names = [name for name, _ in model.named_parameters()]
    idle = [p for p in patterns if not fnmatch.filter(names, p)]
    if idle:
        raise ValueError(f"SOLVER.NO_DECAY: no parameter is named as {idle}")
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = cfg.SOLVER.BACKBONE_MULTIPLIER if id(parameter) in in_backbone else 1.0
            exempt = any(fnmatch.fnmatchcase(name, p) for p in patterns)
            decay = 0.0 if exempt else cfg.SOLVER.WEIGHT_DECAY
            # with names, by which a resumed training finds the moments
            groups.setdefault((factor, decay), []).append((name, parameter))
    return torch.optim.AdamW(
        [
            {"params": p, "lr": cfg.SOLVER.BASE_LR * factor, "weight_decay": decay}
            for (factor, decay), p in groups.items()
        ],
        lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        fused=True,
    )


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
    """Detectron2's schedules, and "WarmupPolyLR": the rate falls to zero as a power of the rest."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return detectron2.solver.build_lr_scheduler(cfg, optimizer)
    multiplier = WarmupParamScheduler(
        PolynomialDecayParamScheduler(1.0, solver.POLY_LR_POWER),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=solver.MAX_ITER)


def resume_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Take over the moments of a saved state, by the names of the parameters.

    Rates, decay and the division into groups stay those of the optimiser.

    Raises:
        ValueError: the state is of before names were saved, and of other groups.
    """
    ours, theirs = optimizer.state_dict()["param_groups"], saved["param_groups"]
    if all("param_names" in group for group in theirs):
        index = dict(_names(theirs))
        state = {i: saved["state"].get(index.get(name)) for name, i in _names(ours)}
        state = {i: moments for i, moments in state.items() if moments is not None}
        fresh = [name for name, _ in _names(ours) if name not in index]
        if fresh:
            logger.warning(
                "%d parameters were not trained before and start without moments, the first is %s",
                len(fresh),
                fresh[0],
            )
    elif [len(group["params"]) for group in theirs] == [len(group["params"]) for group in ours]:
        state = saved["state"]
    else:
        raise ValueError(
            "the checkpoint groups its parameters otherwise, and is of a version that did not name "
            "them: resume with SOLVER.BACKBONE_MULTIPLIER, SOLVER.WEIGHT_DECAY, SOLVER.NO_DECAY "
            "and MODEL.BACKBONE.FREEZE_AT as they were"
        )
    optimizer.load_state_dict({"state": state, "param_groups": ours})


def resume_schedule(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Set the rates of the step where a loaded schedule is, from the optimiser's initial rates."""
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, scheduler.get_lr()):
        group["lr"] = rate


def _names(groups: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Name and index of every parameter."""
    return [pair for group in groups for pair in zip(group["param_names"], group["params"])]
