"""The gradient of the weights of 3x3 convolutions of stride 2, at the rate of matrix products.

CPU libraries reach a third of it there.
"""

from __future__ import annotations

from torch import Tensor

# numbers gathered at a time: 8 MB, for the caches
_BAND = 2**21


def weight_gradient(x: Tensor, upstream: Tensor) -> Tensor:
    """Gradient (K, C, 3, 3) of the weights of `F.conv2d(x, weight, stride=2, padding=1)`.

    For each tap, the pixels that it saw times the gradients that they led to.

    Args:
        x: (B, C, H, W), what was convolved.
        upstream: (B, K, ceil(H / 2), ceil(W / 2)), the gradient of the result.
    """
    x, upstream = (t.permute(0, 2, 3, 1).contiguous() for t in (x, upstream))
    batch, height, width, outputs = upstream.shape
    inputs = x.shape[-1]
    total = x.new_zeros((9, inputs, outputs))
    step = max(1, _BAND // (9 * width * inputs))
    for image in range(batch):
        for start in range(0, height, step):
            stop = min(start + step, height)
            # lines 2 start - 1 to 2 stop - 1 of the image, zeros around it
            first, last = max(2 * start - 1, 0), min(2 * stop, x.shape[1])
            lines = x.new_zeros((2 * (stop - start) + 1, 2 * width + 1, inputs))
            top = first - (2 * start - 1)
            lines[top : top + last - first, 1 : 1 + x.shape[2]] = x[image, first:last]
            line, column, _ = lines.stride()
            taps = lines.as_strided(
                (3, 3, stop - start, width, inputs), (line, column, 2 * line, 2 * column, 1)
            ).reshape(9, -1, inputs)
            gradients = upstream[image, start:stop].reshape(1, -1, outputs).expand(9, -1, -1)
            total.baddbmm_(taps.transpose(1, 2), gradients)
    return total.view(3, 3, inputs, outputs).permute(3, 2, 0, 1)
