"""Strided 1x1 convolutions of few channels, whose gradients oneDNN writes beside their memory.

In channels last, on a CPU, the backward pass writes whole vectors where a pixel has fewer channels:
up to 7 with AVX2, up to 15 with AVX-512. The process then dies, or goes on with damaged numbers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

# floats in the longest vector of a CPU
_VECTOR = 16


class PickPixels:
    """A hook before a convolution that keeps every n-th pixel.

    Args:
        steps: n along height and width.
    """

    def __init__(self, steps: tuple[int, int]) -> None:
        self.steps = steps

    def __call__(self, conv: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        """((B, C, H, W),) -> ((B, C, ceil(H / n), ceil(W / n)),)."""
        (x,) = arguments
        return (x[..., :: self.steps[0], :: self.steps[1]],)


def pick_pixels_before_narrow_convolutions(module: nn.Module) -> None:
    """Let strided 1x1 convolutions of few channels pick their pixels first, then have no stride.

    It is the same arithmetic, and as fast; names and weights stay.
    """
    for conv in module.modules():
        if (
            isinstance(conv, nn.Conv2d)
            and conv.in_channels < _VECTOR
            and conv.kernel_size == (1, 1)
            and conv.padding == (0, 0)
            and conv.stride != (1, 1)
        ):
            height, width = conv.stride
            conv.register_forward_pre_hook(PickPixels((height, width)))
            conv.stride = (1, 1)
