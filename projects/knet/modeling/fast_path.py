"""From images to the last round, for inference: batch norms folded, compiled if asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class FastPath:
    """Backbone and heads without gradients.

    A copy of the backbone, whose convolutions do the work of their batch norms as well, follows
    the model's weights whenever they change: torch counts changes of a tensor, except by fused
    optimisers and through `.data`, after which `forget` has to be called (`KNet` does so in every
    step of training). The copy is no part of the model: neither saved nor trained. A backbone
    without such convolutions is used as it is.

    Args:
        backbone: in inference mode whenever it is called, like the heads.
        heads: from feature maps to all rounds.
        in_features: names of the backbone's maps that the heads take.
        compiled: run `torch.compile`'s code, one for images of all sizes.
    """

    def __init__(
        self, backbone: nn.Module, heads: nn.Module, in_features: Sequence[str], *, compiled: bool
    ) -> None:
        self.backbone = backbone
        self.heads = heads
        self.in_features = list(in_features)
        self.compiled = compiled
        self._folded: nn.Module | None = None
        self._versions: list[tuple[int, int, int]] = []
        self._run: Callable[..., Any] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Any:
        """(B, 3, H, W) -> what the heads give, up to rounding."""
        backbone = self._up_to_date()
        if not self.compiled:
            return self._forward(backbone, images)
        if self._run is None:
            self._run = torch.compile(self._forward, dynamic=True, fullgraph=True)
            batch, channels, height, width = images.shape
            if height == width:
                # it would give code for squares: see another shape first
                self._run(backbone, images.new_zeros((batch, channels, height, 2 * width)))
        return self._run(backbone, images)

    def forget(self) -> None:
        """The copy is made anew from the weights at the next call."""
        self._versions = []

    def _forward(self, backbone: nn.Module, images: Tensor) -> Any:
        features = backbone(images)
        return self.heads([features[name] for name in self.in_features])

    def _up_to_date(self) -> nn.Module:
        if self._folded is self.backbone:
            return self.backbone
        tensors = [*self.backbone.parameters(), *self.backbone.buffers()]
        versions = [(id(t), t.data_ptr(), t._version) for t in tensors]
        if self._folded is None or versions != self._versions:
            if not any(_foldable(m) for m in self.backbone.modules()):
                self._folded = self.backbone
            elif self._folded is None or _place(self._folded) != _place(self.backbone):
                self._folded = fold_batch_norms(self.backbone)
            else:
                # in place, so that compiled code stays valid
                _copy_weights(fold_batch_norms(self.backbone), self._folded)
            self._versions = versions
        return self._folded

    def __deepcopy__(self, memo: dict) -> FastPath:
        backbone, heads = (copy.deepcopy(m, memo) for m in (self.backbone, self.heads))
        return FastPath(backbone, heads, self.in_features, compiled=self.compiled)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folded": None, "_versions": [], "_run": None}


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy of a module whose convolutions do the work of their batch norms, too.

    Detectron2's `Conv2d` with a `norm` in inference mode are folded; others stay as they are.
    """
    folded = copy.deepcopy(module).requires_grad_(False)
    conv: Any
    for conv in folded.modules():
        if _foldable(conv):
            norm = conv.norm
            statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
            conv.norm = None
    return folded.requires_grad_(False)


def _foldable(module: nn.Module) -> bool:
    if not isinstance(module, Conv2d):
        return False
    norm: Any = module.norm
    if isinstance(norm, FrozenBatchNorm2d):
        return True
    batch_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    return batch_norm and not norm.training and norm.running_mean is not None


def _place(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameter = next(module.parameters())
    return parameter.device, parameter.dtype


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    with torch.no_grad():
        for new, old in zip(source.state_dict().values(), target.state_dict().values()):
            old.copy_(new)
