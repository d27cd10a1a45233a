"""From images to the last round, for inference: on weights of its own that suit it better."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from knet.accel.graphs import Graphs
from knet.modeling.knet import KNet


class InferenceForward:
    """Backbone and heads of a model without gradients, as `KNet.inference`.

    Works on a copy of the backbone whose convolutions do the work of their batch norms as well, in
    another type if one is asked for, then with copies of the heads' parts in front of the rounds.
    The rounds themselves are shared: their matrices are small, and what they sum over pixels needs
    float32; masks come in the type of the features.

    The copies are no part of the model: neither saved nor trained. They follow its weights whenever
    these change: torch counts changes of a tensor, except by fused optimisers and through `.data`,
    after which `forget` has to be called (every step of training does), as after modules were
    exchanged.

    Args:
        model: in inference mode whenever this is called.
        dtype: of the copies; float32 leaves them in the type of the model.
        graphs: CUDA graphs to keep; 0 for none.
    """

    def __init__(self, model: KNet, *, dtype: torch.dtype = torch.float32, graphs: int = 0) -> None:
        self.backbone, self.heads = model.backbone, model.heads
        self.in_features = list(model.in_features)
        self.dtype = dtype
        self._copy: nn.ModuleList | None = None  # of backbone and heads
        self._watched: list[
            tuple[Any, str]
        ] = []  # all weights: a module's dict, and the name there
        self._places: list[tuple[int, int]] = []
        self._versions: list[int] = []
        self._run: Callable[[Tensor], Any] = (
            Graphs(self._forward, graphs) if graphs else self._forward
        )

    def __call__(self, images: Tensor) -> Any:
        """(B, 3, H, W) -> what the heads give, up to rounding."""
        # tensors made in inference mode could not be written over outside of it
        with torch.inference_mode(False), torch.no_grad():
            self._follow_weights()
            return self._run(images if self.dtype == torch.float32 else images.to(self.dtype))

    def forget(self) -> None:
        """The copies are made anew from the weights at the next call."""
        self._versions = []

    def _forward(self, images: Tensor) -> Any:
        assert self._copy is not None
        backbone, heads = self._copy
        features = backbone(images)
        return heads([features[name] for name in self.in_features])

    def _follow_weights(self) -> None:
        if self._versions and self._state() == (self._places, self._versions):
            return
        self._watched = [
            (tensors, name)
            for part in (self.backbone, self.heads)
            for module in part.modules()
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        places, versions = self._state()
        new = nn.ModuleList([self._copied_backbone(), self._copied_heads()])
        if self._copy is None or places != self._places:
            self._copy = new
            if isinstance(self._run, Graphs):
                self._run.clear()
        else:  # in place, so that graphs stay valid
            with torch.no_grad():
                for ours, theirs in zip(_tensors(self._copy), _tensors(new)):
                    if ours is not theirs:
                        ours.copy_(theirs)
        self._places, self._versions = places, versions

    def _state(self) -> tuple[list[tuple[int, int]], list[int]]:
        """Where the weights are, and how often torch has counted a change of each.

        Out of a list, since walking over the modules would take milliseconds in every call.
        """
        tensors: list[Any] = [owner[name] for owner, name in self._watched]
        return [(id(t), t.data_ptr()) for t in tensors], [t._version for t in tensors]

    def _copied_backbone(self) -> nn.Module:
        if self.dtype == torch.float32 and not any(map(_foldable, self.backbone.modules())):
            return self.backbone
        return cast(fold_batch_norms(self.backbone), self.dtype)

    def _copied_heads(self) -> nn.Module:
        if self.dtype == torch.float32:
            return self.heads
        memo = {id(self.heads.rounds): self.heads.rounds}
        heads = copy.deepcopy(self.heads, memo)
        for name, part in heads.named_children():
            if name != "rounds":
                cast(part, self.dtype)
        return heads

    def __deepcopy__(self, memo: dict) -> InferenceForward:
        other = copy.copy(self)
        memo[id(self)] = other
        other.backbone, other.heads = (copy.deepcopy(m, memo) for m in (self.backbone, self.heads))
        other._copy, other._watched, other._places, other._versions = None, [], [], []
        most = self._run.most if isinstance(self._run, Graphs) else 0
        other._run = Graphs(other._forward, most) if most else other._forward
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None, "_watched": [], "_places": [], "_versions": []}


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


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same module with its numbers in another type, but for the statistics of batch norms."""
    for part in module.modules():
        if not isinstance(part, (_BatchNorm, FrozenBatchNorm2d)):
            for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)
    return module


def _foldable(module: nn.Module) -> bool:
    if not isinstance(module, Conv2d):
        return False
    norm: Any = module.norm
    if isinstance(norm, FrozenBatchNorm2d):
        return True
    return isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
