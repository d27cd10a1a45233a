"""One optimiser step: accumulation, mixed precision, clipping, metrics; no wait for a GPU."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from knet.data.loader import seed_everything
from knet.errors import first_of
from knet.training.average import WeightAverage
from knet.training.optimizer import resume_optimizer

logger = logging.getLogger(__name__)

# instruction sets of ONEDNN_MAX_CPU_ISA that have bfloat16 products
_ISA_WITH_BFLOAT16 = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")


class Metrics(NamedTuple):
    """What one step says, on the CPU."""

    iteration: int
    data_time: float  # seconds of waiting for batches
    losses: dict[str, float]
    grad_norm: float  # L2, of all gradients together, before clipping
    broken: bool  # a value is not finite, and the training has to end


class TrainStep(SimpleTrainer):
    """The inner trainer of Detectron2's `DefaultTrainer`.

    Python looks at no value of a step, for which it would have to wait: losses stay on the device
    until `flush_metrics`. A step with a loss or gradients that are not finite is left out on the
    device, and so are all after it, until `flush_metrics` or `require_finite` raises its error.

    Args:
        model: returns a dict of losses, whose sum is minimised.
        make_loader: (seed, first step) -> batches; called when training starts, so that a resumed
            run goes on with the batch where it stopped.
        optimizer: its learning rates are set by a hook. With one that is not `fused` each step
            waits.
        seed: of batches and augmentation; a checkpoint's seed replaces it.
        accumulation_steps: batches a step; their losses are averaged.
        autocast_dtype: None for float32.
        clip_norm: largest L2 norm of all gradients together; None for no limit.
        average: of the weights, which follows each step that is taken.
        keep_broken: called with the first step of this process that is not finite, `seed` and
            the number of its `parts`, before its error; returns a sentence that goes into that.
    """

    def __init__(
        self,
        model: nn.Module,
        make_loader: Callable[[int, int], Iterable],
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        accumulation_steps: int = 1,
        autocast_dtype: torch.dtype | None = None,
        clip_norm: float | None = None,
        average: WeightAverage | None = None,
        keep_broken: Callable[..., str] | None = None,
    ) -> None:
        super().__init__(model, (), optimizer)  # the true loader starts with the first step
        self.seed = seed
        self.accumulation_steps = accumulation_steps
        self.autocast_dtype = autocast_dtype
        self.clip_norm = clip_norm
        self.average = average
        self.device = next(model.parameters()).device
        # only float16 has too small a range for gradients
        self.grad_scaler = torch.amp.GradScaler(
            self.device.type, enabled=autocast_dtype == torch.float16
        )
        self._make_loader = make_loader
        self._keep_broken = keep_broken
        self._kept: str | None = None
        self._batches: Iterator | None = None
        self._broken = torch.zeros((), dtype=torch.bool, device=self.device)
        # of the steps since the last flush: iteration, data time, names of the losses, values
        self._pending: list[tuple[int, float, Sequence[str], Tensor]] = []

    def run_step(self) -> None:
        """Forward and backward over the parts of a batch, then one update."""
        first = self._batches is None
        if self._batches is None:
            self._batches = iter(self._make_loader(self.seed, self.iter))
        # whatever the model draws depends on the step alone, so resuming repeats it
        seed_everything(self.seed, self.iter, comm.get_rank(), 1)
        self.optimizer.zero_grad(set_to_none=True)
        data_time = 0.0
        totals: dict[str, Tensor] = {}
        for part in range(self.accumulation_steps):
            start = time.perf_counter()
            batch = next(self._batches)
            data_time += time.perf_counter() - start
            last = part == self.accumulation_steps - 1
            apart = not last and isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if apart else nullcontext():
                losses = self._backward(batch)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() / self.accumulation_steps
        if first and isinstance(self.model, DistributedDataParallel):
            _require_gradients(self.model.module)
        values = self._update(torch.stack([value.float() for value in totals.values()]))
        self._pending.append((self.iter, data_time, list(totals), values))

    def _backward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        dtype = self.autocast_dtype
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            losses = self.model(batch)
        total = sum(losses.values()) / self.accumulation_steps
        self.grad_scaler.scale(total).backward()
        return losses

    def _update(self, losses: Tensor) -> Tensor:
        """Change the weights by the gradients, unless a loss or the gradients are not finite.

        Args:
            losses: (L,).

        Returns:
            the losses, the norm of the gradients, and 1 if the training has to end: (L + 2,).
        """
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = float("inf") if self.clip_norm is None else self.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        overflow, hopeless = ~norm.isfinite(), ~losses.isfinite().all()
        if self.grad_scaler.is_enabled():
            # a scale of float16 gradients that is too large is halved, and the step left out
            found = sum(self.grad_scaler._found_inf_per_device(self.optimizer).values())
            too_large = (self.grad_scaler.scale(torch.ones_like(norm)) >= 1) & (found > 0)
            hopeless |= overflow & ~too_large
        else:
            hopeless |= overflow
        if comm.get_world_size() > 1:  # all leave out the same steps, and end together
            anywhere = hopeless.float()
            dist.all_reduce(anywhere, dist.ReduceOp.MAX)
            hopeless = anywhere > 0
        self._broken |= hopeless
        skip = self._broken | overflow
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # how a `GradScaler` has fused optimisers leave out a step
            self.optimizer.grad_scale, self.optimizer.found_inf = None, skip.float()
            self.optimizer.step()
            del self.optimizer.grad_scale, self.optimizer.found_inf
        elif not skip:
            self.optimizer.step()
        if self.average is not None:
            self.average.update(~skip)
        self.grad_scaler.update()
        return torch.cat([losses, torch.stack([norm.float(), hopeless.float()])])

    def flush_metrics(self) -> None:
        """Put the metrics of all steps since the last call into the event storage.

        It waits for the GPU. All processes must call it after the same steps; losses are averaged
        over them.

        Raises:
            FloatingPointError: as `require_finite`.
        """
        steps = self._read()
        whole = list(takewhile(lambda step: not step.broken, steps))
        gathered = comm.gather(whole)
        if comm.is_main_process():
            _store(gathered)
        if len(whole) < len(steps):
            self.require_finite()
        self._pending.clear()

    def keep_pending(self) -> None:
        """After a failure, put this process's metrics since the last flush into the storage.

        The others may be gone. What cannot be read from a failed GPU is said to be lost.
        """
        try:
            steps = self._read()
        except RuntimeError as error:
            logger.warning(
                "The metrics of the last %d steps are lost: %s", len(self._pending), error
            )
            return
        if comm.is_main_process():
            _store([list(takewhile(lambda step: not step.broken, steps))])
        self._pending.clear()

    def require_finite(self) -> None:
        """Raise what is wrong with this process's steps since the last flush; waits for the GPU.

        Raises:
            FloatingPointError: a loss or the gradients of a step were not finite; the weights are
                as before that step.
        """
        step = next((step for step in self._read() if step.broken), None)
        if step is None:
            return
        losses = {name: value for name, value in step.losses.items() if not np.isfinite(value)}
        what = f"losses became infinite or NaN: {losses}"
        if not losses:
            what = f"the gradient norm became {step.grad_norm} although all losses are finite"
            if np.isfinite(step.grad_norm):
                what = "losses of another process became infinite or NaN"
        if self._kept is None and self._keep_broken is not None:
            self._kept = self._keep_broken(step, seed=self.seed, parts=self.accumulation_steps)
        raise FloatingPointError(
            f"{what}, at step {step.iteration + 1}; the weights are as before this step."
            f"{self._kept or ''} Go on from the last checkpoint with --resume and a lower "
            "SOLVER.BASE_LR"
        )

    def _read(self) -> list[Metrics]:
        if not self._pending:
            return []
        values = iter(torch.cat([values for *_, values in self._pending]).tolist())  # one copy
        return [
            Metrics(i, seconds, {n: next(values) for n in names}, next(values), next(values) > 0)
            for i, seconds, names, _ in self._pending
        ]

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, gradient scaler and seed."""
        state = super().state_dict()
        state["seed"] = self.seed
        state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; rates, decay and precision stay those of this run."""
        TrainerBase.load_state_dict(self, state)
        resume_optimizer(self.optimizer, state["optimizer"])
        self.seed = state["seed"]
        if state["grad_scaler"] and self.grad_scaler.is_enabled():  # empty without float16
            self.grad_scaler.load_state_dict(state["grad_scaler"])


def _require_gradients(model: nn.Module) -> None:
    """Name parameters without one, of which DDP would speak by number in the next step."""
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        raise ValueError(
            f"{first_of(unused)}: no loss depends on them, but several processes wait for the "
            "gradient of every parameter: use them, leave their layers out (such as stages of the "
            "backbone by MODEL.KNET.IN_FEATURES), or set their requires_grad to False"
        )


def _store(gathered: Sequence[Sequence[Metrics]]) -> None:
    """Put the metrics of steps, a sequence for each process, into the event storage."""
    storage = get_event_storage()
    now = storage.iter
    for of_all in zip(*gathered):
        first = of_all[0]
        storage.iter = first.iteration
        storage.put_scalar("data_time", max(step.data_time for step in of_all))
        losses = {n: np.mean([step.losses[n] for step in of_all]) for n in first.losses}
        storage.put_scalar("total_loss", sum(losses.values()))
        if len(losses) > 1:
            storage.put_scalars(**losses)
        if np.isfinite(first.grad_norm):
            storage.put_scalar("grad_norm", first.grad_norm)
    storage.iter = now


def autocast_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The type of mixed precision that the config asks for, or None for float32.

    Raises:
        ValueError: float16 on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name, device = cfg.SOLVER.AMP.DTYPE, torch.device(cfg.MODEL.DEVICE)
    if name == "auto":
        dtype, reason = _fastest(device)
        chosen = "float32" if dtype is None else str(dtype).rpartition(".")[2]
        logger.info("SOLVER.AMP.DTYPE auto: %s, since %s", chosen, reason)
        return dtype
    if device.type == "cpu" and name == "float16":
        raise ValueError("SOLVER.AMP.DTYPE float16 needs a GPU: use auto or bfloat16 on a CPU")
    if device.type == "cpu" and not computes_in_bfloat16():
        logger.warning(
            "SOLVER.AMP.DTYPE bfloat16: this processor has no instructions for it; a step was "
            "nearly twice as slow as in float32, measured on one Xeon; auto chooses what is fast"
        )
    return getattr(torch, name)


def _fastest(device: torch.device) -> tuple[torch.dtype | None, str]:
    """Type and reason."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU computes in it"
        return torch.float16, "the GPU is too old for bfloat16"
    if device.type == "cpu" and computes_in_bfloat16():
        return torch.bfloat16, "the processor has instructions for it"
    if device.type == "cpu":
        return None, "the processor has no instructions for bfloat16"
    return None, f"nothing is known of bfloat16 on {device.type}"


def computes_in_bfloat16() -> bool:
    """Whether this machine's processor multiplies in bfloat16.

    It is what oneDNN may use: the environment variable ONEDNN_MAX_CPU_ISA can forbid it.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        onednn = torch.backends.mkldnn.is_available()
        return onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # the latter after torch 2.5
    has = any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    return has and any(part in limit.upper() for part in _ISA_WITH_BFLOAT16)
