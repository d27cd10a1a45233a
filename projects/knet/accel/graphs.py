"""CUDA graphs: all launches of a forward pass as one, for sizes of images that occur again."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

# runs before a capture, in which libraries choose their algorithms
_WARM_UPS = 2


class Graphs:
    """Replays a function of images, without its launches, for sizes that it has seen before.

    A size is captured when it occurs for the second time; of more sizes than `most` the one that
    was used least recently goes. All graphs share one pool of memory, since what one leaves there
    is copied before another runs.

    Args:
        function: Tensor -> tensors in lists and tuples; must not wait for the device, nor read
            anything from the host but the sizes of its input.
        most: graphs to keep.
        capture: (function, images, pool) -> the replaying function, and the pool.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        most: int,
        *,
        capture: Callable[..., tuple[Callable[[Tensor], Any], Any]] | None = None,
    ) -> None:
        self.function = function
        self.most = most
        self.capture = capture or _capture
        self.clear()

    def clear(self) -> None:
        """Drop all graphs: what they read is no longer there."""
        self._graphs: OrderedDict[Any, Callable[[Tensor], Any]] = OrderedDict()
        self._seen: Counter[Any] = Counter()
        self._pool: Any = None

    def __call__(self, images: Tensor) -> Any:
        """What the function gives; the caller may keep it.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        if torch.is_autocast_enabled(images.device.type):  # its casts of weights would be gone
            return self.function(images)
        key = (images.shape, images.stride(), images.dtype, images.device)
        if key in self._graphs:
            self._graphs.move_to_end(key)
        else:
            self._seen[key] += 1
            if self._seen[key] < 2:
                return self.function(images)
            if len(self._graphs) == self.most:
                self._graphs.popitem(last=False)
            try:
                self._graphs[key], self._pool = self.capture(self.function, images, self._pool)
            except RuntimeError as error:
                raise RuntimeError(
                    f"this model cannot be captured as a CUDA graph ({error}): set "
                    "MODEL.KNET.ACCEL.GRAPHS 0"
                ) from error
        return self._graphs[key](images)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graphs": OrderedDict(), "_seen": Counter(), "_pool": None}


def _capture(
    function: Callable[[Tensor], Any], images: Tensor, pool: Any
) -> tuple[Callable[[Tensor], Any], Any]:
    """The function that replays for images of this size, and the pool of its memory."""
    static = images.clone()
    stream = torch.cuda.Stream(images.device)
    stream.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            function(static)
    torch.cuda.current_stream(images.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        outputs = function(static)

    def replay(images: Tensor) -> Any:
        static.copy_(images)
        graph.replay()
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, outputs)

    return replay, graph.pool()
