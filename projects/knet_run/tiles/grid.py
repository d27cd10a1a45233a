"""Where the tiles of a picture lie, and which pixels each of them decides."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

_LEAST = 32


@dataclass(frozen=True)
class Axis:
    """The tiles along one side of a picture: all of one size, at even distances.

    Attributes:
        size: of a tile; the side itself where that is shorter.
        starts: the first pixel of each tile.
        cuts: tile k decides the pixels from `cuts[k]` to `cuts[k + 1]`: the cuts lie in the middle
            of what two neighbours share.
    """

    size: int
    starts: tuple[int, ...]
    cuts: tuple[int, ...]

    @classmethod
    def of(cls, length: int, tile: int, overlap: int) -> Axis:
        """The fewest tiles that cover a side of `length` pixels and share `overlap` or more."""
        size = min(tile, length)
        gaps = -(-(length - size) // (tile - overlap))
        starts = tuple((length - size) * k // max(gaps, 1) for k in range(gaps + 1))
        middles = ((a + size + b) // 2 for a, b in itertools.pairwise(starts))
        return cls(size, starts, (0, *middles, length))

    def core(self, k: int) -> slice:
        """What tile k decides, in its own pixels."""
        return slice(self.cuts[k] - self.starts[k], self.cuts[k + 1] - self.starts[k])

    def shared(self, k: int) -> int:
        """Pixels that tile k shares with the one before it."""
        return self.starts[k - 1] + self.size - self.starts[k]


@dataclass(frozen=True)
class Grid:
    """The tiles of a picture, row by row."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, size: tuple[int, int], tile: tuple[int, int], overlap: int) -> Grid:
        """The tiles of a picture.

        Args:
            size: (H, W) of the picture.
            tile: (height, width) of a tile; shorter sides of the picture are not cut.
            overlap: pixels that neighbours share at least.

        Raises:
            ValueError: tiles are under 32 pixels, or share more than half of their pixels.
        """
        if min(tile) < _LEAST:
            raise ValueError(f"--tiles {min(tile)}: tiles have {_LEAST} pixels a side at least")
        if not 0 <= overlap <= min(tile) // 2:
            raise ValueError(
                f"--overlap {overlap}: neighbours share 0 pixels to half of a tile, "
                f"{min(tile) // 2}"
            )
        rows, columns = (Axis.of(n, t, overlap) for n, t in zip(size, tile))
        return cls(rows, columns)

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Row and column of each tile."""
        return (
            (r, c) for r in range(len(self.rows.starts)) for c in range(len(self.columns.starts))
        )
