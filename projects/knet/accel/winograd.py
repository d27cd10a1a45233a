"""3x3 convolutions in a quarter of the multiplications, for large float32 maps on a CPU.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", 2016): a tile of 6x6 inputs and the 3x3 weights are each transformed into 36 numbers;
their products, summed over the channels as 36 matrix products, are transformed into 4x4 outputs.
Gradients are of the same form: the transforms transposed, in the opposite order. GPU libraries
choose such algorithms themselves; those of CPUs do not.

The tiles are worked off in bands that fit into the caches, so hardly more memory is needed than
for the output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Interpolation points are 0, A, -A, B, -B and infinity. With the textbook's 1 and 2 the rounding
# error is three times that of the direct sum; with these, whose powers stay near 1, one and a half
# times.
_A, _B = 2 / 3, 3 / 2
# numbers of the transformed tiles of a band: 8 MB, for the caches
_BAND = 2**21
# fewer tiles, or narrower maps, are not worth the transforms
_LEAST_TILES, _LEAST_CHANNELS = 200, 128


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of inputs (6, 6), weights (6, 3) and outputs (4, 6), by Toom and Cook."""
    a, b = _A**2, _B**2
    # coefficients of polynomials that vanish at all points but one
    inputs = [[a * b, 0.0, -a - b, 0.0, 1.0, 0.0], [0.0, a * b, 0.0, -a - b, 0.0, 1.0]]
    weights = [[1 / (a * b), 0.0, 0.0], [0.0, 0.0, 1.0]]
    outputs = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    for point, other in ((_A, b), (-_A, b), (_B, a), (-_B, a)):
        scale = 1 / (2 * point**2 * (point**2 - other))
        inputs.insert(-1, [0, -other * point, -other, point, 1, 0])
        weights.insert(-1, [scale, scale * point, scale * point**2])
        outputs.insert(-1, [1, point, point**2, point**3])
    of_inputs, of_weights, of_outputs = (
        torch.tensor(rows, dtype=torch.float64) for rows in (inputs, weights, outputs)
    )
    return of_inputs, of_weights, of_outputs.T


# of both axes of a tile at once: (36, 36), (36, 9) and (16, 36)
_INPUTS, _WEIGHTS, _OUTPUTS = (torch.kron(m, m).float() for m in _transforms())


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve` is worth it: large float32 maps on a CPU, outside traced graphs."""
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= _LEAST_CHANNELS
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and -(-x.shape[2] // 4) * -(-x.shape[3] // 4) >= _LEAST_TILES
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution of stride 1 that keeps the size, as `F.conv2d(x, weight, bias, padding=1)`.

    Equal up to rounding. The gradient of x is such a convolution of that of the result, with the
    weights turned around.

    Args:
        x: (B, C, H, W) float32 on a CPU.
        weight: (K, C, 3, 3).
        bias: (K,) or None.

    Returns:
        (B, K, H, W), channels last.
    """
    batch, _, height, width = x.shape
    x, outputs = _channels_last(x), weight.shape[0]
    transformed = _kernel_matrices(weight)
    out = x.new_empty((batch, height, width, outputs))
    scratch = _Scratch(x)
    for image, rows, count in _bands(x, outputs):
        tiles = _input_tiles(x[image], rows, count, scratch)
        products = scratch("products", 36, tiles.shape[1], outputs)
        torch.bmm(tiles, transformed, out=products)
        results = scratch("results", 16, tiles.shape[1] * outputs)
        torch.mm(_OUTPUTS, products.view(36, -1), out=results)
        results = results.view(4, 4, count, -1, outputs)
        if bias is not None:
            results += bias
        _write_tiles(results, out[image, 4 * rows : 4 * (rows + count)])
    return out.permute(0, 3, 1, 2)


def weight_gradient(x: Tensor, upstream: Tensor) -> Tensor:
    """Gradient (K, C, 3, 3) of `convolve`'s weights.

    Args:
        x: (B, C, H, W), what was convolved.
        upstream: (B, K, H, W), the gradient of the result.
    """
    x, upstream = _channels_last(x), _channels_last(upstream)
    inputs, outputs = x.shape[-1], upstream.shape[-1]
    total = x.new_zeros((36, inputs, outputs))
    scratch = _Scratch(x)
    for image, rows, count in _bands(x, outputs):
        results = _read_tiles(upstream[image, 4 * rows : 4 * (rows + count)], count).view(16, -1)
        products = scratch("products", 36, results.shape[1])
        torch.mm(_OUTPUTS.T, results, out=products)
        tiles = _input_tiles(x[image], rows, count, scratch)
        total.baddbmm_(tiles.transpose(1, 2), products.view(36, -1, outputs))
    gradient = _WEIGHTS.T @ total.view(36, -1)
    return gradient.view(3, 3, inputs, outputs).permute(3, 2, 0, 1)


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> contiguous (B, H, W, C), copied only if it is not laid out so already."""
    return x.permute(0, 2, 3, 1).contiguous()


def _kernel_matrices(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (36, C, K)."""
    taps = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return torch.mm(_WEIGHTS, taps).view(36, weight.shape[1], weight.shape[0])


def _bands(x: Tensor, outputs: int) -> Iterator[tuple[int, int, int]]:
    """Image, first row of tiles and number of rows of tiles, over all of (B, H, W, C)."""
    batch, height, width, channels = x.shape
    rows = -(-height // 4)
    row_size = 36 * -(-width // 4) * max(channels, outputs)
    step = max(1, _BAND // row_size)
    step = -(-rows // -(-rows // step))  # even shares
    for image in range(batch):
        for start in range(0, rows, step):
            yield image, start, min(step, rows - start)


class _Scratch:
    """Memory that all bands of a call use; fresh pages would cost as much as the arithmetic."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._blocks: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A tensor with any content, in the block of that name: the first band is the largest."""
        size = math.prod(shape)
        if name not in self._blocks:
            self._blocks[name] = self._like.new_empty(size)
        return self._blocks[name][:size].view(shape)


def _input_tiles(image: Tensor, start: int, count: int, scratch: _Scratch) -> Tensor:
    """Transformed 6x6 tiles (36, tiles, C) of some rows of tiles of an image (H, W, C)."""
    height, width, channels = image.shape
    columns = -(-width // 4)
    top, rows = 4 * start - 1, 4 * count + 2
    first, last = max(top, 0), min(top + rows, height)
    band = scratch("band", rows, 4 * columns + 2, channels)
    band[: first - top] = 0
    band[last - top :] = 0
    band[:, 0] = 0
    band[:, width + 1 :] = 0
    band[first - top : last - top, 1 : width + 1] = image[first:last]
    row, column, _ = band.stride()
    overlapping = band.as_strided(
        (6, 6, count, columns, channels), (row, column, 4 * row, 4 * column, 1)
    )
    gathered = scratch("gathered", *overlapping.shape)
    tiles = scratch("tiles", 36, count * columns * channels)
    torch.mm(_INPUTS, gathered.copy_(overlapping).view(36, -1), out=tiles)
    return tiles.view(36, count * columns, channels)


def _write_tiles(tiles: Tensor, rows: Tensor) -> None:
    """(4, 4, count, columns, K) -> into `rows` (h, w, K), cropped at its end."""
    _, _, count, columns, channels = tiles.shape
    height, width, _ = rows.shape
    ordered = tiles.permute(2, 0, 3, 1, 4)
    if (height, width) == (4 * count, 4 * columns):
        rows.view(count, 4, columns, 4, channels).copy_(ordered)
    else:
        rows.copy_(ordered.reshape(4 * count, 4 * columns, channels)[:height, :width])


def _read_tiles(rows: Tensor, count: int) -> Tensor:
    """(h, w, K), padded with zeros at its end -> contiguous (4, 4, count, columns, K)."""
    height, width, channels = rows.shape
    columns = -(-width // 4)
    if (height, width) != (4 * count, 4 * columns):
        rows = F.pad(rows, (0, 0, 0, 4 * columns - width, 0, 4 * count - height))
    return rows.view(count, 4, columns, 4, channels).permute(1, 3, 0, 2, 4).contiguous()
