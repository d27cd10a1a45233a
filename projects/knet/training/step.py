"""One optimiser step: accumulation, mixed precision, clipping, metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from detectron2.engine import SimpleTrainer, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from knet.data.loader import seed_everything
from knet.training.optimizer import resume_optimizer


class TrainStep(SimpleTrainer):
    """The inner trainer of Detectron2's `DefaultTrainer`.

    Args:
        model: returns a dict of losses, whose sum is minimised.
        make_loader: (seed, first step) -> batches; called when training starts, so that a resumed
            run goes on with the batch where it stopped.
        optimizer: its learning rates are set by a hook.
        seed: of batches and augmentation; a checkpoint's seed replaces it.
        accumulation_steps: batches a step; their losses are averaged.
        autocast_dtype: None for float32.
        clip_norm: largest L2 norm of all gradients together; None for no limit.
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
    ) -> None:
        super().__init__(model, (), optimizer)  # the true loader starts with the first step
        self.seed = seed
        self.accumulation_steps = accumulation_steps
        self.autocast_dtype = autocast_dtype
        self.clip_norm = clip_norm
        self.device = next(model.parameters()).device
        # only float16 has too small a range for gradients
        self.grad_scaler = torch.amp.GradScaler(
            self.device.type, enabled=autocast_dtype == torch.float16
        )
        self._make_loader = make_loader
        self._batches: Iterator | None = None

    def run_step(self) -> None:
        """Forward and backward over the parts of a batch, then one update."""
        if self._batches is None:
            self._batches = iter(self._make_loader(self.seed, self.iter))
        # whatever the model draws depends on the step alone, so resuming repeats it
        seed_everything(self.seed, self.iter, comm.get_rank(), 1)
        self.optimizer.zero_grad(set_to_none=True)
        data_time = 0.0
        totals: dict[str, torch.Tensor] = {}
        for part in range(self.accumulation_steps):
            start = time.perf_counter()
            batch = next(self._batches)
            data_time += time.perf_counter() - start
            last = part == self.accumulation_steps - 1
            if not last and isinstance(self.model, DistributedDataParallel):
                with self.model.no_sync():
                    losses = self._backward(batch)
            else:
                losses = self._backward(batch)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() / self.accumulation_steps
        self._update(totals, data_time)

    def _backward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        with torch.autocast(
            self.device.type,
            dtype=self.autocast_dtype,
            enabled=self.autocast_dtype is not None,
        ):
            losses = self.model(batch)
        total = sum(losses.values()) / self.accumulation_steps
        self.grad_scaler.scale(total).backward()
        return losses

    def _update(self, losses: dict[str, torch.Tensor], data_time: float) -> None:
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = float("inf") if self.clip_norm is None else self.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        # one copy for all figures of the step
        names = list(losses)
        *values, norm_value = torch.stack([*(losses[n].float() for n in names), norm]).cpu()
        self._require_finite(dict(zip(names, values)), norm_value)
        self._write_metrics(dict(zip(names, values)), data_time)
        if comm.is_main_process() and norm_value.isfinite():
            get_event_storage().put_scalar("grad_norm", float(norm_value), smoothing_hint=True)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _require_finite(self, losses: dict[str, torch.Tensor], norm: torch.Tensor) -> None:
        """Raise FloatingPointError before the weights change."""
        broken = {name: float(value) for name, value in losses.items() if not value.isfinite()}
        # a scale of float16 gradients that is too large is halved, and the step left out
        hopeless = not self.grad_scaler.is_enabled() or self.grad_scaler.get_scale() < 1
        if broken:
            what = f"losses became infinite or NaN: {broken}"
        elif not norm.isfinite() and hopeless:
            what = f"the gradient norm became {float(norm)} although all losses are finite"
        else:
            return
        raise FloatingPointError(
            f"{what}, at step {self.iter + 1}; the weights are as before this step. Go on from the "
            "last checkpoint with --resume and a lower SOLVER.BASE_LR"
        )

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
