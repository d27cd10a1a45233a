"""Two bilinear resizes and a crop as one pair of small matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from knet.modeling.layers import to_device

# a resizing matrix is made and used in so many bands at most
_MOST_BANDS = 256


def bilinear_matrix(size_in: int, size_out: int) -> Tensor:
    """(size_out, size_in) float32 weights of bilinear interpolation, align_corners=False."""
    return interpolation_matrix(_positions(size_in, size_out), size_in)


def _positions(size_in: int, size_out: int) -> Tensor:
    """(size_out,) where an enlarged or reduced line reads, in cells; float32, as torch does it.

    So weights agree to the last bit.
    """
    scale = torch.tensor(size_in, dtype=torch.float32) / size_out
    return (torch.arange(size_out, dtype=torch.float32) + 0.5) * scale - 0.5


def interpolation_matrix(position: Tensor, size_in: int) -> Tensor:
    """(n, size_in) float32 weights that interpolate linearly at n positions, in cells from 0.

    Positions beyond the first and the last cell take these cells' values.
    """
    position = position.clamp(min=0)
    low = position.long().clamp(max=size_in - 1)
    high = (low + 1).clamp(max=size_in - 1)
    fraction = (position - low).clamp(0, 1)
    count = position.shape[0]  # not len(): an exported graph does not know it
    matrix = torch.zeros(count, size_in)
    rows = torch.arange(count)
    matrix[rows, low] += (1 - fraction).float()
    matrix[rows, high] += fraction.float()
    return matrix


def composed_matrix(size_in: int, padded: int, cropped: int, size_out: int) -> Tensor:
    """(size_out, size_in) float32: enlarge to `padded`, cut to `cropped`, resize to `size_out`."""
    enlarge = bilinear_matrix(size_in, padded)[:cropped]
    return (bilinear_matrix(cropped, size_out).double() @ enlarge.double()).float()


# images of a data set share few sizes, and the matrices of one take less than a MB
@lru_cache(maxsize=64)
def _bands(
    size_in: int, padded: int, cropped: int, size_out: int, device: torch.device, band: int
) -> tuple[tuple[slice, slice, Tensor], ...]:
    """The blocks of `composed_matrix` that are not zero: neighbours come from neighbours.

    A product with the whole matrix would spend most of its time on zeros, and of a picture with a
    very long side it would not fit into memory.

    Returns:
        Of each band the rows of the output, the rows of the input that they read, and the
        weights between them.
    """
    enlarge = bilinear_matrix(size_in, padded)[:cropped].double()
    positions = _positions(cropped, size_out).clamp(min=0)
    bands, step = [], max(band, -(-size_out // _MOST_BANDS))
    for start in range(0, size_out, step):
        position = positions[start : start + step]
        low = position.long().clamp(max=cropped - 1)
        high = (low + 1).clamp(max=cropped - 1)
        fraction = (position - low).clamp(0, 1)[:, None]
        used = enlarge[int(low[0]) : int(high[-1]) + 1].any(0).nonzero()[:, 0]
        read = slice(int(used[0]), int(used[-1]) + 1)
        weights = (1 - fraction).double() * enlarge[low, read]
        weights += fraction.double() * enlarge[high, read]
        weights = to_device(weights.float().contiguous(), device)
        bands.append((slice(start, start + len(position)), read, weights))
    return tuple(bands)


class MaskResizer:
    """Brings masks from the grid they were predicted on to the original image.

    Published order (bilinear to the padded batch, crop to the image, bilinear to the original
    size), composed into one matrix for rows and one for columns.

    Args:
        grid_size: (h, w) of the masks.
        padded_size: (height, width) of the padded batch that the grid covers.
        image_size: (height, width) of the image within it.
        output_size: (height, width) wanted.
        device: of the masks.
        band: rows or columns of the output that one matrix product makes. Short ones spare a CPU
            most of the zeros, long ones a GPU most of the calls.
        chunk_bytes: at most this much resized probability is held at a time by `stream`.
    """

    def __init__(
        self,
        *,
        grid_size: Sequence[int],
        padded_size: Sequence[int],
        image_size: Sequence[int],
        output_size: Sequence[int],
        device: torch.device,
        band: int = 2**13,
        chunk_bytes: int = 2**30,
    ) -> None:
        sizes = zip(grid_size, padded_size, image_size, output_size)
        # ints, also while a tracer looks on: the matrices of a size are made once
        self._rows, self._columns = (_bands(*map(int, axis), device, band) for axis in sizes)
        (h, w), (height, width) = grid_size, output_size
        self.output_size = (int(height), int(width))
        self._chunk_bytes = chunk_bytes
        # the order that passes fewer numbers on
        self._rows_first = height * w <= h * width

    def __call__(self, masks: Tensor) -> Tensor:
        """(N, h, w) float32 -> (N, H, W)."""
        with torch.autocast(masks.device.type, enabled=False):
            if self._rows_first:
                return self._resize_columns(self._resize_rows(masks))
            return self._resize_rows(self._resize_columns(masks))

    def _resize_rows(self, masks: Tensor) -> Tensor:
        if len(self._rows) == 1:
            ((_, read, weights),) = self._rows
            return weights @ masks[:, read]
        out = masks.new_empty((len(masks), self.output_size[0], masks.shape[2]))
        for where, read, weights in self._rows:
            out[:, where] = weights @ masks[:, read]
        return out

    def _resize_columns(self, masks: Tensor) -> Tensor:
        if len(self._columns) == 1:
            ((_, read, weights),) = self._columns
            return masks[..., read] @ weights.T
        out = masks.new_empty((*masks.shape[:2], self.output_size[1]))
        for where, read, weights in self._columns:
            out[..., where] = masks[..., read] @ weights.T
        return out

    def stream(
        self, kernels: Sequence[int], probabilities: Callable[[Sequence[int]], Tensor]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Resized probabilities of the chosen kernels, a few at a time.

        Args:
            kernels: indices wanted.
            probabilities: (n, h, w) on the grid, of n kernels.

        Yields:
            The indices of a chunk and its probabilities (n, H, W).
        """
        height, width = self.output_size
        chunk = max(1, self._chunk_bytes // (4 * height * width))
        for start in range(0, len(kernels), chunk):
            index = list(kernels[start : start + chunk])
            yield index, self(probabilities(index))
