"""How much a model computes and holds: operations and activations of its whole inference.

The counters are fvcore's, and so is the convention: a multiplication with its addition is one
operation (a MAC), so a convolution or matrix product counts half of what counters of single
operations give. Everything else that computes with floating point counts, too: elementwise
functions one operation an output element, reductions one an input element, a softmax or norm five,
a bilinear resize four.

Free are, as in fvcore, moving data, comparisons (also ReLU and maxima), and integers; and batch
norms in inference, which convolutions can take over (``knet.accel.forward``). What is neither
counted nor free is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from detectron2.export.flatten import flatten_to_tuple
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_handles import conv_flop_jit, einsum_flop_jit, get_shape
from torch import Tensor, nn

Handle = Callable[[Sequence[Any], Sequence[Any]], int | Counter]

_FLOATING = {"Half", "BFloat16", "Float", "Double"}


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

    @property
    def products(self) -> float:
        """The share of convolutions and matrix products in a count of operations."""
        names = {name.split("::")[1] for name in _PRODUCTS} | {"conv"}
        return sum(value for name, value in self.by_operator.items() if name in names)


def flop_analysis(model: nn.Module, record: Mapping[str, Any]) -> Count:
    """Count the operations of one image, a multiplication with its addition as one.

    Results with their resizing and fusing are counted, too. Batch norms are apart from the
    convolutions, and free.

    Args:
        model: a ``KNet`` that is not accelerated, counted in inference mode and left as it was.
        record: its input, a dict with ``image`` (3, H, W), ``height`` and ``width``.
    """
    return _count(FlopCountAnalysis, model, record, {**_PRODUCTS, **_OTHER})


def activation_analysis(model: nn.Module, record: Mapping[str, Any]) -> Count:
    """Count the outputs of convolutions and matrix products, as Detectron2 does.

    Arguments are those of :func:`flop_analysis`.
    """
    handles = {**dict.fromkeys(_PRODUCTS, _activations), **dict.fromkeys(_OTHER)}
    return _count(ActivationCountAnalysis, model, record, handles)


def _count(
    analysis_type: Any, model: nn.Module, record: Mapping[str, Any], handles: Mapping[str, Any]
) -> Count:
    analysis = analysis_type(_Traceable(model, record), (record["image"],)).clear_op_handles()
    analysis.set_op_handle(**handles, **dict.fromkeys(_FREE))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with _plain_inference(model):
        by_operator = dict(analysis.by_operator())
        return Count(analysis, by_operator, dict(analysis.unsupported_ops()))


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


def _tensors(value: Any) -> list[Tensor]:
    return [part for part in flatten_to_tuple(value)[0] if isinstance(part, Tensor)]


@contextmanager
def _plain_inference(model: nn.Module) -> Iterator[None]:
    """Inference whose operators a tracer sees: torch has a fused one for a whole attention."""
    training, fused = model.training, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        torch.backends.mha.set_fastpath_enabled(fused)


def _size(value: Any) -> int:
    """Elements of a floating-point tensor; 0 for integers and what is no tensor."""
    if not value.isCompleteTensor() or value.type().scalarType() not in _FLOATING:
        return 0
    return prod(get_shape(value) or ())


def _product(first: int) -> Handle:
    """(…, m, k) times (…, k, n), also of vectors and with broadcasting; `first` is the first."""

    def count(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        return _size(outputs[0]) * (get_shape(inputs[first]) or [0])[-1]

    return count


def _einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    equation = inputs[0].toIValue().replace(" ", "")
    shapes = [get_shape(value) for value in inputs[1].node().inputs()]
    terms = equation.split("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        return int(einsum_flop_jit(inputs, outputs))
    sizes = {letter: n for term, shape in zip(terms, shapes) for letter, n in zip(term, shape)}
    return prod(sizes.values())


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter:
    # query (…, n, d), key (…, m, d), value (…, m, d')
    *batch, queries, width = get_shape(inputs[0]) or (0, 0)
    keys, value_width = (get_shape(inputs[2]) or (0, 0))[-2:]
    pairs = prod(batch) * queries * keys
    return Counter(
        {"scaled_dot_product_attention": pairs * (width + value_width), "softmax": 5 * pairs}
    )


def _deformable(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter:
    # weight (C', C / groups, h, w); every tap is sampled once for each input channel
    channels, group_channels, *kernel = get_shape(inputs[1]) or (1, 0)
    in_channels = (get_shape(inputs[0]) or (0, 0))[1]
    pixels = _size(outputs[0]) // channels
    taps = pixels * in_channels * prod(kernel)
    return Counter(
        {
            "deform_conv2d": pixels * channels * group_channels * prod(kernel),
            "bilinear_sampling": 4 * taps,
        }
    )


def _scaled(*, inputs: int = 0, outputs: int = 0) -> Handle:
    def count(given: Sequence[Any], results: Sequence[Any]) -> int:
        return inputs * _size(given[0]) + outputs * _size(results[0])

    return count


def _names(*texts: str) -> list[str]:
    """Operators by their short names, and what works in place."""
    return [f"aten::{name}{end}" for text in texts for name in text.split() for end in ("", "_")]


def _handles(names: str, handle: Handle) -> dict[str, Handle]:
    return dict.fromkeys(_names(names), handle)


_PRODUCTS: dict[str, Handle] = {
    "aten::_convolution": conv_flop_jit,
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
    "torchvision::deform_conv2d": _deformable,
    **_handles("matmul mm bmm mv dot vdot linear", _product(0)),
    **_handles("addmm baddbmm addmv", _product(1)),
}

_OTHER: dict[str, Handle] = {
    **_handles(
        "add sub mul div true_divide neg abs reciprocal sqrt rsqrt pow square exp log log2 log1p "
        "logit sigmoid tanh gelu silu hardswish softplus elu leaky_relu lerp addcmul addcdiv sin "
        "cos erf rsub",
        _scaled(outputs=1),
    ),
    **_handles(
        "sum mean var std norm linalg_vector_norm cumsum prod logsumexp avg_pool2d "
        "adaptive_avg_pool2d",
        _scaled(inputs=1),
    ),
    # self, dim, index, source
    **_handles("scatter_add index_add", lambda given, _: _size(given[3])),
    **_handles("softmax _softmax log_softmax", _scaled(inputs=5)),
    **_handles("group_norm layer_norm native_layer_norm instance_norm", _scaled(inputs=5)),
    **_handles("upsample_bilinear2d grid_sampler", _scaled(outputs=4)),
    **_handles("upsample_bicubic2d", _scaled(outputs=16)),
}

# beside those that fvcore itself leaves out
_FREE = _names(
    # moving and making data
    "_shape_as_tensor _to_copy _unsafe_view adjoint alias as_strided as_tensor broadcast_tensors "
    "broadcast_to cartesian_prod clone concat concatenate detach diagonal empty_like "
    "empty_strided expand_as fill flip full_like im2col index_copy index_fill index_put "
    "index_select lift lift_fresh linspace mT masked_fill masked_scatter masked_select meshgrid "
    "moveaxis movedim new_ones numpy_T one_hot ones_like pad pixel_shuffle pixel_unshuffle repeat "
    "repeat_interleave reshape_as resize resolve_conj resolve_neg scalar_tensor scatter "
    "scatter_reduce swapaxes swapdims take take_along_dim tensor tensor_split tile tril triu "
    "unflatten unfold unsafe_chunk unsafe_split upsample_nearest2d view_as where zero",
    # comparing, choosing, rounding, signs
    "all amax amin aminmax any argmax argmin argsort ceil clamp_max clamp_min count_nonzero floor "
    "hardtanh isfinite isinf isnan le lt max_pool2d maximum min minimum ne nonzero_numpy relu6 "
    "round searchsorted sign sort topk trunc",
    # integers and truth values
    "Bool Float FloatImplicit IntImplicit __or__ __xor__ bincount bitwise_and bitwise_or "
    "is_nonzero item logical_and logical_not logical_or logical_xor numel",
    # nothing in inference, or nothing of their own
    "batch_norm dropout feature_dropout",
)


def _activations(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Elements of an operator's output."""
    return prod(get_shape(outputs[0]) or ())
