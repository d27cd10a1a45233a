"""How far a long look at a data set is: lines on the standard error, with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

# done, total
Progress = Callable[[int, int], None]

_CHUNK = 8  # items that are waited for before the time left is said
_STEP = 512  # items of a sequence after which it is told
_DELAY = 2.0  # seconds for which nothing is said of a sequence


def show_progress(name: str, unit: str = "records", *, delay: float = 0.0) -> Progress:
    """Writes items done and the time left, twice a second at most (to a file: every ten seconds).

    Args:
        name: before the numbers.
        unit: what is counted.
        delay: seconds for which nothing is said: what is done by then needs no words.
    """
    start = last = time.monotonic()
    # when the first item came: what it took to start says nothing of the rest
    begun = start if delay else 0.0
    said = False
    terminal = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        nonlocal begun, last, said
        now = time.monotonic()
        begun = begun or now
        soon = now - last < (0.5 if terminal else 10)
        if now - start < delay or (soon and not (terminal and done == total)):
            return
        if done == total and not said and delay:
            return
        last, said = now, True
        text = f"{name}: {done} of {total} {unit}"
        if done > _CHUNK:  # the first ones come at once
            text += f", {(now - begun) / (done - 1) * (total - done):.0f} s left"
        print(f"\r{text:<78}" if terminal else text, end="" if terminal else "\n", file=sys.stderr)
        if terminal and done == total:
            print(file=sys.stderr)

    return show


def progressing(items: Sequence[T], name: str, unit: str) -> Iterator[T]:
    """The items; if it takes long to go through them, their number and the time left are shown."""
    show = show_progress(name, unit, delay=_DELAY)
    for position, item in enumerate(items):
        if position % _STEP == 0 and position:
            show(position, len(items))
        yield item
    if len(items) >= _STEP:
        show(len(items), len(items))
