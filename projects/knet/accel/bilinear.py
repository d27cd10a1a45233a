"""Bilinear enlargement of maps to a list of pixels, and its transpose.

Losses are sums over pixels, whatever their order. Where a map is doubled, as in all published
models, its pixels come by phase: those of even lines and even columns first, then even lines and
odd columns, and so on. Each phase is a plain weighted mean of the map and of the map moved by one
pixel, three times as fast as interpolating in the order of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from knet.modeling.layers import at_least_float32
from knet.modeling.losses import enlarge

# weight of the farther neighbour along each axis, where a map is doubled
_FAR = 0.25


class Enlargement:
    """From maps (..., h, w) to P pixels (..., P) of maps (..., H, W).

    Args:
        small, large: (h, w) and (H, W).
    """

    def __init__(self, small: Sequence[int], large: Sequence[int]) -> None:
        self.small, self.large = tuple(small), tuple(large)
        self.doubles = self.large == tuple(2 * length for length in self.small)
        # whether some lines of a map can be enlarged without the others
        self.by_lines = self.doubles or self.small == self.large

    @property
    def all_lines(self) -> slice:
        """The h lines of a map."""
        return slice(0, self.small[0])

    def values(self, maps: Tensor, lines: slice) -> Tensor:
        """(..., h, w) -> float32 (..., P) of the pixels that come from some lines.

        Other lines than all can be chosen with `by_lines`.
        """
        if not self.doubles:
            return enlarge(maps, self.large)[
                ..., lines if self.by_lines else slice(None), :
            ].flatten(-2)
        maps = at_least_float32(maps)
        above, below = (_moved(maps, lines, by) for by in (-1, 1))
        here = maps[..., lines, :]
        count = here.shape[-2]
        out = here.new_empty((*maps.shape[:-2], 2, 2, count, self.small[1]))
        for phase, neighbour in enumerate((above, below)):
            line = torch.lerp(here, neighbour, _FAR)
            for column, side in enumerate((_left(line), _right(line))):
                torch.lerp(line, side, _FAR, out=out[..., phase, column, :, :])
        return out.flatten(-4)

    def arrange(self, maps: Tensor, lines: slice) -> Tensor:
        """(..., H, W) -> (..., P): values of the same pixels in the same order."""
        if not self.doubles:
            return maps[..., lines if self.by_lines else slice(None), :].flatten(-2)
        maps = maps[..., 2 * lines.start : 2 * lines.stop, :]
        phases = maps.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # lines, 2, columns, 2
        order = [*range(maps.dim() - 2), -3, -1, -4, -2]
        return phases.permute(order).flatten(-4)

    def add_transposed(self, pixels: Tensor, lines: slice, total: Tensor) -> None:
        """Add the transpose of `values`, (..., P) -> (..., h, w), to `total`."""
        height, width = self.small
        if not self.doubles:
            gradient = pixels.unflatten(-1, (-1, self.large[1]))
            if self.by_lines:
                total[..., lines, :] += gradient
            else:
                total += _transposed_interpolation(gradient, self.small)
            return
        phases = pixels.unflatten(-1, (2, 2, -1, width))
        for phase in range(2):
            even, odd = phases[..., phase, 0, :, :], phases[..., phase, 1, :, :]
            line = (even + odd).mul_(1 - _FAR)
            line[..., :-1].add_(even[..., 1:], alpha=_FAR)
            line[..., 1:].add_(odd[..., :-1], alpha=_FAR)
            # beyond the edge is the edge
            line[..., 0].add_(even[..., 0], alpha=_FAR)
            line[..., -1].add_(odd[..., -1], alpha=_FAR)
            total[..., lines, :].add_(line, alpha=1 - _FAR)
            by = 2 * phase - 1
            first, last = max(lines.start + by, 0), min(lines.stop + by, height)
            skipped = first - (lines.start + by)
            inner = line[..., skipped : skipped + last - first, :]
            total[..., first:last, :].add_(inner, alpha=_FAR)
            if skipped:
                total[..., 0, :].add_(line[..., 0, :], alpha=_FAR)
            elif last - first < line.shape[-2]:
                total[..., -1, :].add_(line[..., -1, :], alpha=_FAR)


def _moved(maps: Tensor, lines: slice, by: int) -> Tensor:
    """The lines above (-1) or below (1) some lines; beyond the edge is the edge."""
    start, stop = lines.start + by, lines.stop + by
    inner = maps[..., max(start, 0) : stop, :]
    if start < 0:
        return torch.cat([maps[..., :1, :], inner], dim=-2)
    if stop > maps.shape[-2]:
        return torch.cat([inner, maps[..., -1:, :]], dim=-2)
    return inner


def _left(maps: Tensor) -> Tensor:
    return torch.cat([maps[..., :1], maps[..., :-1]], dim=-1)


def _right(maps: Tensor) -> Tensor:
    return torch.cat([maps[..., 1:], maps[..., -1:]], dim=-1)


def _transposed_interpolation(gradient: Tensor, size: Sequence[int]) -> Tensor:
    flat = gradient.reshape(1, -1, *gradient.shape[-2:])
    small = torch.ops.aten.upsample_bilinear2d_backward(
        flat, list(gradient.shape[-2:]), [*flat.shape[:2], *size], False, None, None
    )
    return small.view(*gradient.shape[:-2], *size)
