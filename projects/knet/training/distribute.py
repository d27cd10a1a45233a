"""A model for several processes, and whether their batch norms can work."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["check_batch_norm", "distribute"]


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model for several processes, on GPUs or CPUs; one process keeps it as it is."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    if not on_gpu and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        raise ValueError(
            "SyncBN needs GPUs: for several processes on CPUs set MODEL.RESNETS.NORM and "
            "MODEL.KNET.SEMANTIC.NORM to BN or GN"
        )
    devices = [torch.cuda.current_device()] if on_gpu else None
    # the newer name first: PyTorch warns of the other
    known = inspect.signature(DistributedDataParallel).parameters
    sync = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
    options: dict[str, Any] = {"device_ids": devices, sync: False}
    return DistributedDataParallel(model, **options)


def check_batch_norm(model: nn.Module, images: int) -> None:
    """Refuse batch norms over a single value, which PyTorch would report without the remedy.

    Args:
        model: to be trained.
        images: that pass at a time in one process.
    """
    pooled = any(isinstance(m, nn.AdaptiveAvgPool2d) for m in model.modules())
    apart = comm.get_world_size() == 1  # SyncBN of several processes sees several images
    single = any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and name.startswith("heads")
        for name, m in model.named_modules()
        if apart or not isinstance(m, nn.SyncBatchNorm)
    )
    if images < 2 and pooled and single:
        raise ValueError(
            "batch norm behind a pooling to one pixel needs two images a process: raise "
            "SOLVER.IMS_PER_BATCH, lower SOLVER.ACCUMULATION_STEPS, or set "
            "MODEL.KNET.SEMANTIC.NORM to GN"
        )
