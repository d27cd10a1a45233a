"""What an operator of a traced graph costs, for fvcore's counters.

The convention is fvcore's: a multiplication with its addition is one operation (a MAC), so a
convolution or matrix product counts half of what counters of single operations give. Everything
else that computes with floating point counts, too: elementwise functions one operation an output
element, reductions one an input element, a softmax or norm five, a bilinear resize four.

Free are, as in fvcore, moving data, comparisons (also ReLU and maxima), and integers; and batch
norms in inference, which convolutions take over (``knet.accel.forward``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Union

from fvcore.nn.jit_handles import conv_flop_jit, einsum_flop_jit, get_shape

__all__ = ["FREE", "OTHER", "PRODUCTS", "activations"]

Handle = Callable[[Sequence[Any], Sequence[Any]], Union[int, Counter]]

_FLOATING = {"Half", "BFloat16", "Float", "Double"}


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


def _source(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    # self, dim, index, source
    return _size(inputs[3])


def _names(*texts: str) -> tuple[str, ...]:
    return tuple(f"aten::{name}" for text in texts for name in text.split())


def _handles(names: str, handle: Handle, *, in_place: bool = False) -> dict[str, Handle]:
    found = _names(names)
    return dict.fromkeys([*found, *(f"{name}_" for name in found if in_place)], handle)


PRODUCTS: dict[str, Handle] = {
    "aten::_convolution": conv_flop_jit,
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
    "torchvision::deform_conv2d": _deformable,
    **_handles("matmul mm bmm mv dot vdot linear", _product(0)),
    **_handles("addmm baddbmm addmv", _product(1)),
}

OTHER: dict[str, Handle] = {
    **_handles(
        "add sub mul div true_divide neg abs reciprocal sqrt rsqrt pow square exp log log2 log1p "
        "logit sigmoid tanh gelu silu hardswish softplus elu leaky_relu lerp addcmul addcdiv sin "
        "cos erf",
        _scaled(outputs=1),
        in_place=True,
    ),
    **_handles("rsub", _scaled(outputs=1)),
    **_handles(
        "sum mean var std norm linalg_vector_norm cumsum prod logsumexp avg_pool2d "
        "adaptive_avg_pool2d",
        _scaled(inputs=1),
    ),
    **_handles("scatter_add index_add", _source, in_place=True),
    **_handles("softmax _softmax log_softmax", _scaled(inputs=5)),
    **_handles("group_norm layer_norm native_layer_norm instance_norm", _scaled(inputs=5)),
    **_handles("upsample_bilinear2d grid_sampler", _scaled(outputs=4)),
    **_handles("upsample_bicubic2d", _scaled(outputs=16)),
}

# beside those that fvcore itself leaves out
FREE: tuple[str, ...] = _names(
    # moving and making data
    "_shape_as_tensor _to_copy _unsafe_view adjoint alias as_strided as_tensor broadcast_tensors "
    "broadcast_to clone concat concatenate detach_ diagonal empty_like empty_strided expand_as "
    "fill_ flip full_like im2col index_copy index_fill index_put index_select lift lift_fresh "
    "linspace mT masked_fill_ masked_scatter masked_select meshgrid moveaxis movedim new_ones "
    "numpy_T one_hot ones_like pad pixel_shuffle pixel_unshuffle repeat repeat_interleave "
    "reshape_as resize_ resolve_conj resolve_neg scalar_tensor scatter scatter_ scatter_reduce_ "
    "swapaxes swapdims "
    "take take_along_dim tensor tensor_split tile tril triu unflatten unfold unsafe_chunk "
    "unsafe_split upsample_nearest2d view_as where zero_",
    # comparing, choosing, rounding, signs
    "all amax amin aminmax any argmax argmin argsort ceil clamp_max clamp_max_ clamp_min "
    "clamp_min_ count_nonzero floor_ hardtanh hardtanh_ isfinite isinf isnan le lt "
    "max_pool2d maximum min minimum ne nonzero_numpy relu6 round searchsorted sign sort topk trunc",
    # integers and truth values
    "Bool Float FloatImplicit IntImplicit __or__ __xor__ bincount bitwise_and bitwise_or "
    "is_nonzero item logical_and logical_not logical_or logical_xor numel",
    # nothing in inference, or nothing of their own
    "batch_norm dropout_ feature_dropout",
)


def activations(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Elements of an operator's output."""
    return prod(get_shape(outputs[0]) or ())
