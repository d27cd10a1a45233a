"""From images to the last round, for inference: on weights of its own that suit it better."""

from __future__ import annotations

import copy
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from knet.accel.graphs import Graphs
from knet.modeling.knet import KNet
from knet.modeling.outputs import CarriedKernels, RoundOutput
from knet.modeling.positions import PlaceEncoding


class InferenceForward:
    """Backbone and heads of a model without gradients, as `KNet.inference`.

    Works on a copy of the backbone whose convolutions do the work of their batch norms as well, in
    another type if one is asked for, then with copies of the heads' parts in front of the rounds.
    The rounds themselves are shared: their matrices are small, and what they sum over pixels needs
    float32; masks come in the type of the features.

    The copies are no part of the model: neither saved nor trained. They are made anew when its
    weights have changed: torch counts changes of a tensor, except by fused optimisers and through
    `.data`, after which `forget` has to be called (every step of training does).

    Args:
        model: in inference mode whenever this is called.
        dtype: of the copies; float32 leaves them in the type of the model.
        graphs: CUDA graphs to keep; 0 for none.
    """

    def __init__(self, model: KNet, *, dtype: torch.dtype = torch.float32, graphs: int = 0) -> None:
        self._model = model
        self.dtype = dtype
        self.graphs = Graphs(self._forward, graphs) if graphs else None
        self.forget()

    def forget(self) -> None:
        """Free the copies and graphs; the next call makes them anew from the weights."""
        self._copy: tuple[nn.Module, nn.Module] | None = None  # backbone and heads
        self._watched: list[
            tuple[Any, str]
        ] = []  # all weights: a module's dict, and the name there
        self._seen: list[Any] = []  # what they held, and the parts of the model
        self._state: list[tuple[int, int]] = []
        if self.graphs is not None:
            self.graphs.clear()

    def __call__(self, images: Tensor, carried: CarriedKernels | None = None) -> RoundOutput:
        """(B, 3, H, W) -> the last round, up to rounding; without graphs if kernels are carried."""
        # tensors made in inference mode could not be used outside of it
        with torch.inference_mode(False), torch.no_grad():
            self._follow_weights()
            images = images if self.dtype == torch.float32 else images.to(self.dtype)
            if self.graphs is None or carried is not None:
                return self._forward(images, carried)
            return self.graphs(images)

    def _forward(self, images: Tensor, carried: CarriedKernels | None = None) -> RoundOutput:
        assert self._copy is not None
        backbone, heads = self._copy
        features = backbone(images)
        maps = [features[name] for name in self._model.in_features]
        if carried is not None:  # semantic heads take none
            return heads(maps, carried=carried)[1][-1]
        return heads(maps)[1][-1]

    def _follow_weights(self) -> None:
        backbone, heads = self._model.backbone, self._model.heads
        if self._copy is not None:
            # out of a list: walking over the modules would take milliseconds in every call
            tensors = [owner.get(name) for owner, name in self._watched]
            seen = [*tensors, backbone, heads]
            same = all(a is b for a, b in zip(seen, self._seen))
            if same and _state_of(tensors) == self._state:
                return
        self.forget()
        self._watched = [
            (tensors, name)
            for part in (backbone, heads)
            for module in part.modules()
            for tensors in (module._parameters, module._buffers)
            for name in tensors
        ]
        tensors = [owner[name] for owner, name in self._watched]
        self._seen, self._state = [*tensors, backbone, heads], _state_of(tensors)
        self._copy = (self._copied_backbone(backbone), self._copied_heads(heads))

    def _copied_backbone(self, backbone: nn.Module) -> nn.Module:
        if self.dtype == torch.float32 and not any(map(_foldable, backbone.modules())):
            return backbone
        return cast(fold_batch_norms(backbone), self.dtype)

    def _copied_heads(self, heads: nn.Module) -> nn.Module:
        if self.dtype == torch.float32:
            return heads
        copied = copy.deepcopy(heads, {id(heads.rounds): heads.rounds})
        for name, part in copied.named_children():
            if name != "rounds":
                cast(part, self.dtype)
        return copied

    def __deepcopy__(self, memo: dict) -> InferenceForward:
        graphs = 0 if self.graphs is None else self.graphs.most
        memo[id(self)] = other = copy.copy(self)
        other.__init__(copy.deepcopy(self._model, memo), dtype=self.dtype, graphs=graphs)  # type: ignore[misc]
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None, "_watched": [], "_seen": [], "_state": []}


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
    """The same module with its numbers in another type, but for what must not be rounded.

    That is the statistics of batch norms, and the phases of `PlaceEncoding`, which span many turns.
    """
    for part in module.modules():
        if not isinstance(part, (_BatchNorm, FrozenBatchNorm2d, PlaceEncoding)):
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


def _state_of(tensors: list[Tensor | None]) -> list[tuple[int, int]]:
    """Where tensors are, and how often torch has counted a change of each."""
    return [
        # those made in inference mode are not counted
        (t.data_ptr(), 0 if t.is_inference() else t._version) if t is not None else (0, 0)
        for t in tensors
    ]
