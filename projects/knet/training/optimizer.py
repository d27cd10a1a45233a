"""AdamW with its own learning rate for the backbone, the schedules, and how both are resumed."""

from __future__ import annotations

import fnmatch
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import detectron2.solver
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import nn

logger = logging.getLogger(__name__)

# what Detectron2 multiplies or divides by the number of processes
_SCALED = (
    *(("SOLVER", key) for key in ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "WARMUP_ITERS", "STEPS")),
    ("SOLVER", "CHECKPOINT_PERIOD"),
    ("TEST", "EVAL_PERIOD"),
)


def build_optimizer(cfg: CfgNode, model: Any) -> torch.optim.AdamW:
    """AdamW over all trainable parameters.

    Parameters of the backbone (not of its FPN) learn at SOLVER.BACKBONE_MULTIPLIER times the rate.

    Raises:
        ValueError: SOLVER.NO_DECAY names no parameter, or contradicts the keys of `_decays`.
    """
    solver = cfg.SOLVER
    if solver.BASE_LR > 1e-3:
        logger.warning(
            "SOLVER.BASE_LR is %g: AdamW on K-Net diverges above about 1e-3; published is 1e-4",
            solver.BASE_LR,
        )
    backbone = getattr(model.backbone, "bottom_up", model.backbone)
    in_backbone = {id(p) for p in backbone.parameters()}
    decays = _decays(cfg, model)
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = solver.BACKBONE_MULTIPLIER if id(parameter) in in_backbone else 1.0
            # with names, by which a resumed training finds the moments
            groups.setdefault((factor, decays[name]), []).append((name, parameter))
    return torch.optim.AdamW(
        [
            {"params": named, "lr": solver.BASE_LR * factor, "weight_decay": decay}
            for (factor, decay), named in groups.items()
        ],
        lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        fused=True,  # which can leave out a step without the CPU's knowledge, see `TrainStep`
    )


def _decays(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """The weight decay of every trainable parameter, by name.

    SOLVER.WEIGHT_DECAY; of norms and of biases SOLVER.WEIGHT_DECAY_NORM and _BIAS where they are
    set, as Detectron2 tells norms and biases (a norm's bias is a bias); none where SOLVER.NO_DECAY
    names the parameter.
    """
    solver = cfg.SOLVER
    known = get_default_optimizer_params(
        model,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    own = {id(p): group.get("weight_decay") for group in known for p in group["params"]}
    names = [name for name, _ in model.named_parameters()]
    idle = [p for p in solver.NO_DECAY if not fnmatch.filter(names, p)]
    if idle:
        raise ValueError(f"SOLVER.NO_DECAY: no parameter is named as {idle}")
    exempt = {name for p in solver.NO_DECAY for name in fnmatch.filter(names, p)}
    decays: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        decay = own.get(id(parameter))
        if name in exempt and decay:
            of_bias = name.endswith("bias") and solver.WEIGHT_DECAY_BIAS is not None
            key = "WEIGHT_DECAY_BIAS" if of_bias else "WEIGHT_DECAY_NORM"
            raise ValueError(
                f"SOLVER.NO_DECAY names {name}, whose decay SOLVER.{key} sets to {decay:g}: leave "
                "it out of NO_DECAY, or set the other to None or 0"
            )
        default = 0.0 if name in exempt else solver.WEIGHT_DECAY
        decays[name] = default if decay is None else decay
    return decays


def scale_to_processes(cfg: CfgNode, processes: int) -> CfgNode:
    """The config for this number of processes, by SOLVER.REFERENCE_WORLD_SIZE as in Detectron2.

    Every number that this changes is said, since the user may have set it.

    Raises:
        ValueError: the batch cannot be divided.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which the {reference} processes "
            "of SOLVER.REFERENCE_WORLD_SIZE cannot share: set that to 0 for numbers as they stand"
        )
    scaled = DefaultTrainer.auto_scale_workers(cfg, processes)
    changes = [
        f"{section}.{key} {cfg[section][key]} -> {scaled[section][key]}"
        for section, key in _SCALED
        if cfg[section][key] != scaled[section][key]
    ]
    if changes:
        logger.warning(
            "SOLVER.REFERENCE_WORLD_SIZE: the numbers of this config are meant for %d processes, "
            "there %s: %s. For numbers as they stand set it to 0",
            reference,
            "is 1" if processes == 1 else f"are {processes}",
            ", ".join(changes),
        )
    return scaled


def scaled_rate(base_lr: float, base_batch: int, batch: int) -> float:
    """The learning rate for another batch: AdamW's goes with the square root of its size.

    Then the noise of an epoch stays what it was (Malladi, Lyu, Panigrahi, Arora: *On the SDEs and
    Scaling Rules for Adaptive Gradient Algorithms*, NeurIPS 2022).

    Args:
        base_lr: right for batches of `base_batch` images.
        batch: images of a step.
    """
    return base_lr * math.sqrt(batch / base_batch)


def scale_to_batch(cfg: CfgNode) -> CfgNode:
    """The config with the rate for its batch, if SOLVER.REFERENCE_BATCH names another one."""
    solver = cfg.SOLVER
    if solver.REFERENCE_BATCH in (0, solver.IMS_PER_BATCH):
        return cfg
    scaled = cfg.clone()
    scaled.defrost()
    rate = scaled_rate(solver.BASE_LR, solver.REFERENCE_BATCH, solver.IMS_PER_BATCH)
    scaled.SOLVER.BASE_LR = rate
    scaled.SOLVER.REFERENCE_BATCH = solver.IMS_PER_BATCH  # so that nobody scales it again
    if cfg.is_frozen():
        scaled.freeze()
    return scaled


def rate_origin(given: CfgNode, scaled: CfgNode) -> str:
    """What a learning rate was scaled from, as the end of a sentence; empty if it was not."""
    solver = given.SOLVER
    if solver.BASE_LR == scaled.SOLVER.BASE_LR:
        return ""
    batch = solver.REFERENCE_BATCH or solver.IMS_PER_BATCH
    return f", scaled from {solver.BASE_LR:g} for the batch of {batch}"


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
    """Detectron2's schedules, and "WarmupPolyLR": the rate falls to zero as a power of the rest."""
    solver = cfg.SOLVER
    if solver.WARMUP_ITERS > solver.MAX_ITER / 3:
        ends = "never reaches" if solver.WARMUP_ITERS >= solver.MAX_ITER else "is long below"
        logger.warning(
            "warm-up takes %d of %d steps (SOLVER.WARMUP_ITERS, SOLVER.MAX_ITER): the learning "
            "rate %s SOLVER.BASE_LR %g; a twentieth of the steps is usual",
            min(solver.WARMUP_ITERS, solver.MAX_ITER),
            solver.MAX_ITER,
            ends,
            solver.BASE_LR,
        )
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
        ValueError: it is no such state, is of parameters of other shapes, or is of before names
            were saved and of other groups.
    """
    ours = optimizer.state_dict()["param_groups"]
    try:
        theirs = [{**group, "params": list(group["params"])} for group in saved["param_groups"]]
        saved = {"state": dict(saved["state"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("the optimiser's state has no groups of parameters") from error
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
            "and MODEL.BACKBONE.FREEZE_AT as they were, and SOLVER.WEIGHT_DECAY_NORM and _BIAS None"
        )
    _check_moments(state, optimizer)
    optimizer.load_state_dict({"state": state, "param_groups": ours})


def resume_schedule(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Set the rates of the step where a loaded schedule is, from the optimiser's initial rates."""
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, scheduler.get_lr()):
        group["lr"] = rate


def _check_moments(state: Mapping[int, Any], optimizer: torch.optim.Optimizer) -> None:
    """PyTorch would take moments of any shape."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        moments = state.get(index, {})
        if not isinstance(moments, Mapping):
            raise ValueError(f"the optimiser's state of parameter {index} is no dict")
        for key, value in moments.items():
            if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
                raise ValueError(f"the optimiser's {key} of parameter {index} is no dense tensor")
            # the number of steps has none
            if value.dim() and value.shape != parameter.shape:
                raise ValueError(
                    f"the optimiser's {key} of parameter {index} has the shape "
                    f"{tuple(value.shape)}, the parameter {tuple(parameter.shape)}"
                )


def _names(groups: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Name and index of every parameter."""
    return [pair for group in groups for pair in zip(group["param_names"], group["params"])]
