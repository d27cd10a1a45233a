"""Work over many masks in parts that fit into a processor's caches."""

from __future__ import annotations

from collections.abc import Iterator

_PART = 2**20  # numbers in a part: a few MB


def chunks(rows: int, row_size: int) -> Iterator[slice]:
    """Slices that cover `rows` rows of `row_size` numbers each, in order."""
    step = max(1, _PART // max(1, row_size))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
