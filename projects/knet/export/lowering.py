"""What must change in a model before it can be traced for any image size."""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from knet.accel.convolutions import use_usual_convolutions

# modules without an equivalent in ONNX, by the names of their classes
_DEFORMABLE = ("DeformConv", "ModulatedDeformConv")


def exportable_copy(part: nn.Module, name: str, *, onnx: bool) -> nn.Module:
    """A copy in evaluation mode whose modules can be traced for any image size.

    Args:
        part: of a model; stays as it is.
        name: of the part, for messages.
        onnx: whether every operator must exist in ONNX.

    Raises:
        ValueError: a deformable convolution, which ONNX has no operator for that runtimes know.
    """
    if onnx:
        for path, module in part.named_modules(prefix=name):
            if type(module).__name__ in _DEFORMABLE:
                raise ValueError(
                    f"{path} is a deformable convolution, which cannot be exported to ONNX: "
                    "export with --format torch_export, or take a model whose "
                    "MODEL.RESNETS.DEFORM_ON_PER_STAGE is all False"
                )
    part = copy.deepcopy(part).eval().requires_grad_(False)
    use_usual_convolutions(part)  # the runtime chooses its own algorithm
    # memory formats are the runtime's business
    part.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in list(part.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, child_name, RegionAverage(cast(Any, child.output_size)))
    for child_name in ("auxiliary", "training_kernels"):
        if getattr(part, child_name, None) is not None:
            setattr(part, child_name, None)  # for training only
    return part


class RegionAverage(nn.Module):
    """`nn.AdaptiveAvgPool2d` as a pair of matrices, for maps whose size is not known.

    Args:
        output_size: regions along each side, or along both.
    """

    def __init__(self, output_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.output_size = (
            (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, *output_size)."""
        if self.output_size == (1, 1):
            return x.mean(dim=(2, 3), keepdim=True)
        rows, columns = (
            _average_matrix(size, regions, like=x)
            for size, regions in zip(x.shape[-2:], self.output_size)
        )
        return rows @ (x @ columns.T)


def _average_matrix(size: int, regions: int, *, like: Tensor) -> Tensor:
    """(regions, size) weights of adaptive average pooling; regions may overlap."""
    index = torch.arange(regions, device=like.device)
    start = index * size // regions
    stop = ((index + 1) * size + regions - 1) // regions
    cell = torch.arange(size, device=like.device)
    inside = (cell >= start[:, None]) & (cell < stop[:, None])
    return inside.to(like.dtype) / (stop - start)[:, None].to(like.dtype)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Multi-head attention as plain operators, not as PyTorch's fused inference operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def constant_padding() -> Iterator[None]:
    """timm's padding "same" (names with `tf_`, and others) as constants where a size is not known.

    As a formula of the sizes it keeps tracing from ending: every layer's sizes depend on the sizes
    before it. But images are padded to a multiple of all strides, so every map's sides divide by
    the stride of the layer that it goes to, and what is missing follows from kernel and stride.
    """
    if "timm" not in sys.modules:  # no backbone of timm then
        yield
        return
    module: Any = importlib.import_module("timm.layers.padding")
    usual = module.get_same_padding
    module.get_same_padding = _same_padding
    try:
        yield
    finally:
        module.get_same_padding = usual


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Of one axis, both sides together; `size` is any number that `stride` divides if symbolic."""
    rest = math.ceil(size / stride) * stride - size if isinstance(size, int) else 0
    return max((kernel - 1) * dilation + 1 - stride + rest, 0)
