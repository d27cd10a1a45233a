"""Two bilinear resizes and a crop as one pair of small matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

# at most this much resized probability is held at a time
_CHUNK_BYTES = 32 << 20


def bilinear_matrix(size_in: int, size_out: int) -> Tensor:
    """(size_out, size_in) float32 weights of bilinear interpolation, align_corners=False.

    Coordinates are computed in float32, as torch does, so that weights agree to the last bit.
    """
    position = torch.arange(size_out, dtype=torch.float32) + 0.5
    scale = torch.tensor(size_in, dtype=torch.float32) / size_out
    return interpolation_matrix(position * scale - 0.5, size_in)


def interpolation_matrix(position: Tensor, size_in: int) -> Tensor:
    """(n, size_in) float32 weights that interpolate linearly at n positions, in cells from 0.

    Positions beyond the first and the last cell take these cells' values.
    """
    position = position.clamp(min=0)
    low = position.long().clamp(max=size_in - 1)
    high = (low + 1).clamp(max=size_in - 1)
    fraction = (position - low).clamp(0, 1)
    matrix = torch.zeros(len(position), size_in)
    rows = torch.arange(len(position))
    matrix[rows, low] += (1 - fraction).float()
    matrix[rows, high] += fraction.float()
    return matrix


def _composed(size_in: int, padded: int, cropped: int, size_out: int) -> Tensor:
    enlarge = bilinear_matrix(size_in, padded)[:cropped]
    return (bilinear_matrix(cropped, size_out).double() @ enlarge.double()).float()


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
    """

    def __init__(
        self,
        *,
        grid_size: Sequence[int],
        padded_size: Sequence[int],
        image_size: Sequence[int],
        output_size: Sequence[int],
        device: torch.device,
    ) -> None:
        sizes = zip(grid_size, padded_size, image_size, output_size)
        rows, columns = (_composed(*axis) for axis in sizes)
        self.rows = rows.to(device)  # (H, h)
        self.columns_t = columns.T.contiguous().to(device)  # (w, W)
        self.output_size = (int(output_size[0]), int(output_size[1]))
        rows_first = (
            self.rows.shape[0]
            * self.columns_t.shape[0]
            * (self.rows.shape[1] + self.columns_t.shape[1])
        )
        columns_first = (
            self.rows.shape[1]
            * self.columns_t.shape[1]
            * (self.columns_t.shape[0] + self.rows.shape[0])
        )
        self._rows_first = rows_first <= columns_first

    def __call__(self, masks: Tensor) -> Tensor:
        """(N, h, w) float32 -> (N, H, W)."""
        with torch.autocast(masks.device.type, enabled=False):
            if self._rows_first:
                return (self.rows @ masks) @ self.columns_t
            return self.rows @ (masks @ self.columns_t)

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
        chunk = max(1, _CHUNK_BYTES // (4 * height * width))
        for start in range(0, len(kernels), chunk):
            index = list(kernels[start : start + chunk])
            yield index, self(probabilities(index))
