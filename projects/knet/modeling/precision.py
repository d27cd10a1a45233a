"""Where mixed precision ends."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Half types, integers and booleans as float32; float32 and float64 as they are.

    For sums over thousands of pixels, losses and costs, which overflow or round away in half
    types. A model in float64 stays so throughout: that tells rounding from a wrong formula.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
