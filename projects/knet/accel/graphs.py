"""CUDA graphs: all launches of a forward pass as one, for sizes of images that occur again."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

logger = logging.getLogger(__name__)

# runs before a capture, in which libraries choose their algorithms
_WARM_UPS = 2


class Graphs:
    """Replays a function of images, without its launches, for sizes that it has seen before.

    A size is captured when it occurs for the second time; of more sizes than `most` the one that
    was used least recently goes. All graphs share one pool of memory, since what one leaves there
    is copied before another runs. A function that cannot be captured runs as it is; that is said
    once. Images that are not on a GPU are none of this class's business.

    Args:
        function: Tensor -> tensors in lists and tuples; must not wait for the device, nor read
            anything from the host but the sizes of its input.
        most: graphs to keep.
        capture: (function, images, pool) -> the replaying function, and the pool.
        device_type: of the images that are captured.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        most: int,
        *,
        capture: Callable[..., tuple[Callable[[Tensor], Any], Any]] | None = None,
        device_type: str = "cuda",
    ) -> None:
        self.function = function
        self.most = most
        self.capture = capture or _capture
        self.device_type = device_type
        self.failed = False
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Drop all graphs: what they read is no longer there."""
        self._graphs: OrderedDict[Any, Callable[[Tensor], Any]] = OrderedDict()
        self._seen: Counter[Any] = Counter()
        self._pools: dict[torch.device, Any] = {}

    def __call__(self, images: Tensor) -> Any:
        """What the function gives; the caller may keep it."""
        kind = images.device.type
        # autocast's casts of weights would be gone when a graph is replayed
        if self.failed or kind != self.device_type or torch.is_autocast_enabled(kind):
            return self.function(images)
        key = (images.shape, images.stride(), images.dtype, images.device)
        with self._lock:  # graphs share their inputs and outputs
            replay = self._graphs.get(key)
            if replay is None:
                self._seen[key] += 1
                if self._seen[key] < 2:
                    return self.function(images)
                replay = self._captured(key, images)
                if replay is None:
                    return self.function(images)
            self._graphs.move_to_end(key)
            return replay(images)

    def _captured(self, key: Any, images: Tensor) -> Callable[[Tensor], Any] | None:
        try:
            pool = self._pools.get(images.device)
            replay, self._pools[images.device] = self.capture(self.function, images, pool)
        except RuntimeError as error:
            self.failed = True
            self.clear()
            logger.warning(
                "This model runs without CUDA graphs, since it cannot be captured (%s); "
                "MODEL.KNET.ACCEL.GRAPHS 0 does not try",
                error,
            )
            return None
        self._graphs[key] = replay
        if len(self._graphs) > self.most:  # afterwards: a pool ends with its last graph
            gone, _ = self._graphs.popitem(last=False)
            del self._seen[gone]
        return replay

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_graphs": OrderedDict(), "_seen": Counter(), "_pools": {}}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _capture(
    function: Callable[[Tensor], Any], images: Tensor, pool: Any
) -> tuple[Callable[[Tensor], Any], Any]:
    """The function that replays for images of this size; its memory and stream, for the next one.

    A pool is shared by captures of one stream alone.
    """
    with torch.cuda.device(images.device):
        memory, stream = pool or (None, torch.cuda.Stream())
        static = images.clone()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads, of loaders, may go on allocating
        with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode="thread_local"):
            outputs = function(static)

    def replay(images: Tensor) -> Any:
        static.copy_(images)
        graph.replay()
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, outputs)

    return replay, (graph.pool(), stream)
