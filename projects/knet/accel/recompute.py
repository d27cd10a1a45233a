"""Activation checkpointing: less memory in training, for a second pass over what is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from detectron2.modeling.backbone import ResNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from knet.modeling.kernels import KernelRounds


def recompute(module: nn.Module) -> None:
    """Keep nothing of a module for its backward pass, which computes it again; in place.

    Losses and gradients are the same, and so are the statistics of batch norms, which count each
    batch once. Without gradients nothing is recomputed. Its outputs must depend on its inputs,
    weights and the random state alone.
    """
    # an attribute before the class's: names and weights stay, and deep copies bind to themselves
    module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _forward(module: nn.Module, *inputs: Any) -> Any:
    plain = partial(type(module).forward, module)
    if not torch.is_grad_enabled():
        return plain(*inputs)
    return checkpoint(
        plain,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _kept_statistics(module)),
    )


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms count into copies of their running statistics."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm, dict(norm.named_buffers())) for norm in norms if norm.training]
    for norm, buffers in kept:
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def recompute_stages(backbone: nn.Module) -> None:
    """Make a ResNet, alone or below an FPN, recompute each of its stages; in place.

    Raises:
        ValueError: for another backbone.
    """
    body = getattr(backbone, "bottom_up", backbone)
    if not isinstance(body, ResNet):
        raise ValueError(
            "MODEL.KNET.ACCEL.RECOMPUTE: the stages of a "
            f"{type(body).__name__} cannot be recomputed in this way; Swin and timm models have "
            "MODEL.SWIN.GRADIENT_CHECKPOINTING and MODEL.TIMM.GRADIENT_CHECKPOINTING"
        )
    for stage in body.stages:
        recompute(stage)


def recompute_rounds(rounds: KernelRounds) -> None:
    """Make each update round recompute; in place."""
    for update in rounds:
        recompute(update)
