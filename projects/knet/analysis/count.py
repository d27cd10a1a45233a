"""Operations and activations of a model's whole inference, complete or told what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import Tensor, nn

from knet.analysis.operators import FREE, OTHER, PRODUCTS, activations

__all__ = ["Count", "activation_analysis", "count_products", "flop_analysis"]


class _Traceable(nn.Module):
    """A model as a function of an image, with tensors as results; both are what a tracer takes."""

    def __init__(self, model: nn.Module, record: Mapping[str, Any]) -> None:
        super().__init__()
        self.knet = model
        self._rest = {key: value for key, value in record.items() if key != "image"}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        # a tracer drops what no result depends on, such as the classes of all rounds but the last:
        # something of every output makes it stay
        traces: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            traces.extend(tensor.flatten()[:0].clone() for tensor in _tensors(output))

        leaves = [m for m in self.knet.modules() if not any(True for _ in m.children())]
        handles = [leaf.register_forward_hook(keep) for leaf in leaves]
        try:
            results = self.knet([{**self._rest, "image": image}])
        finally:
            for handle in handles:
                handle.remove()
        return (*_tensors(results), *traces)


@dataclass(frozen=True)
class Count:
    """What fvcore counted in one inference.

    Attributes:
        analysis: fvcore's, for its tables; modules are below ``knet``.
        by_operator: counts.
        uncounted: times that operators came which neither count nor are known to be free.
    """

    analysis: FlopCountAnalysis | ActivationCountAnalysis
    by_operator: dict[str, float]
    uncounted: dict[str, int]

    @property
    def total(self) -> float:
        return sum(self.by_operator.values())


def flop_analysis(model: nn.Module, record: Mapping[str, Any]) -> Count:
    """Count the operations of one image, a multiplication with its addition as one.

    Results with their resizing and fusing are counted, too. Batch norms are apart from the
    convolutions, and free.

    Args:
        model: a ``KNet``; it is put into inference mode.
        record: its input, a dict with ``image`` (3, H, W), ``height`` and ``width``.
    """
    traceable = _Traceable(model, record)
    analysis = FlopCountAnalysis(traceable, (record["image"],)).clear_op_handles()
    analysis.set_op_handle(**PRODUCTS, **OTHER, **dict.fromkeys(FREE))
    return _count(analysis, model)


def activation_analysis(model: nn.Module, record: Mapping[str, Any]) -> Count:
    """Count the outputs of convolutions and matrix products, as Detectron2 does.

    Arguments are those of :func:`flop_analysis`.
    """
    traceable = _Traceable(model, record)
    analysis = ActivationCountAnalysis(traceable, (record["image"],)).clear_op_handles()
    analysis.set_op_handle(**dict.fromkeys(PRODUCTS, activations), **dict.fromkeys([*OTHER, *FREE]))
    return _count(analysis, model)


def count_products(count: Count) -> float:
    """The share of convolutions and matrix products in a count of operations."""
    names = {name.split("::")[1] for name in PRODUCTS} | {"conv"}
    return sum(value for name, value in count.by_operator.items() if name in names)


def _count(analysis: Any, model: nn.Module) -> Count:
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with _plain_inference(model):
        by_operator = dict(analysis.by_operator())
        return Count(analysis, by_operator, dict(analysis.unsupported_ops()))


@contextmanager
def _plain_inference(model: nn.Module) -> Iterator[None]:
    """Inference whose operators a tracer sees below their modules.

    Without gradients the model would use its folded copy of the backbone, which is no module of
    it, and torch one fused operator for a whole attention.
    """
    training = model.training
    trained = [p for p in model.parameters() if p.requires_grad]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for parameter in trained:
        parameter.requires_grad_(False)  # else everything would be kept for a backward pass
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
        torch.backends.mha.set_fastpath_enabled(fused)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a model's results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "get_fields"):  # Instances
        yield from _tensors(value.get_fields())
    elif hasattr(value, "tensor"):  # Boxes
        yield value.tensor
