"""Work over many masks in parts that fit into caches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

# numbers in a part: on a CPU a few MB, which stay in its caches; on a GPU enough to fill it
_CPU, _GPU = 2**20, 2**26


def chunks(rows: int, row_size: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `rows` rows of `row_size` numbers each, in order."""
    budget = _CPU if device.type == "cpu" else _GPU
    step = max(1, budget // max(1, row_size))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
