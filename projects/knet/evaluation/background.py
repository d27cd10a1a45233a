"""Work on results in threads, while the model works on the next image."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

__all__ = ["Background"]


class Background:
    """Calls a function in threads and hands its results back in order, in the calling thread.

    Only a few calls wait at any time, so that memory does not grow when the threads are slower
    than the caller: then :meth:`put` waits for the oldest. An error of a call is raised there,
    or in :meth:`finish`.

    Args:
        work: called with what is put; it should spend its time outside the interpreter's lock.
        collect: called with each result.
        threads: by default the number of processors, at most 4.
    """

    def __init__(
        self,
        work: Callable[..., Any],
        collect: Callable[[Any], None],
        *,
        threads: int | None = None,
    ) -> None:
        threads = threads or min(4, os.cpu_count() or 1)
        self._work, self._collect = work, collect
        self._pool = ThreadPoolExecutor(threads)
        self._limit = 2 * threads
        self._waiting: deque[Future[Any]] = deque()

    def put(self, *arguments: Any) -> None:
        """Have ``work(*arguments)`` done soon."""
        self._waiting.append(self._pool.submit(self._work, *arguments))
        while len(self._waiting) > self._limit or (self._waiting and self._waiting[0].done()):
            self._collect(self._waiting.popleft().result())

    def finish(self) -> None:
        """Wait for all calls and end the threads."""
        while self._waiting:
            self._collect(self._waiting.popleft().result())
        self._pool.shutdown()

    def cancel(self) -> None:
        """Drop what waits, and end the threads."""
        for call in self._waiting:
            call.cancel()
        self._waiting.clear()
        self._pool.shutdown()
