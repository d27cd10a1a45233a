"""Activation checkpointing: less memory in training, for a second pass over what is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from detectron2.modeling.backbone import ResNet
from torch import nn
from torch.utils.checkpoint import checkpoint

# what MODEL.KNET.RECOMPUTE can name
RECOMPUTABLE = ("backbone", "rounds")


class Recomputed:
    """Calls a module without keeping what its backward pass needs; that is computed again then.

    Losses and gradients are the same, and so are the statistics of batch norms, which count each
    batch once. Without gradients nothing is recomputed.

    Args:
        module: its outputs must depend on its inputs, weights and the random state alone.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Any) -> Any:
        """The module's output."""
        if not torch.is_grad_enabled():
            return self.module(*inputs)
        return checkpoint(
            self.module,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _kept_statistics(self.module)),
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
            f"MODEL.KNET.RECOMPUTE: the stages of a {type(body).__name__} cannot be recomputed in "
            "this way; Swin and timm models have MODEL.SWIN.GRADIENT_CHECKPOINTING and "
            "MODEL.TIMM.GRADIENT_CHECKPOINTING"
        )
    # a plain list beside the registered modules: names of parameters stay
    body.stages = [Recomputed(stage) for stage in body.stages]
