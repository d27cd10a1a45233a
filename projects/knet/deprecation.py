"""How a part of the public surface goes: for at least one minor version it warns."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["deprecated"]

_F = TypeVar("_F", bound=Callable[..., Any])


def deprecated(*, instead: str, gone_in: str) -> Callable[[_F], _F]:
    """A decorator for a function or class that is to go; each call warns, and works as before.

    Args:
        instead: what to use, as code, such as ``knet.train``.
        gone_in: the first version without it, such as ``0.3``.
    """

    def marked(function: _F) -> _F:
        name = f"{function.__module__}.{function.__qualname__}"
        text = f"{name} will be gone in knet {gone_in}; use {instead}"

        if isinstance(function, type):
            begin = function.__init__  # type: ignore[misc]

            @functools.wraps(begin)
            def warning_init(self: Any, *args: Any, **kwargs: Any) -> None:
                warnings.warn(text, FutureWarning, stacklevel=2)
                begin(self, *args, **kwargs)

            function.__init__ = warning_init  # type: ignore[misc]
            return function

        @functools.wraps(function)
        def warning_call(*args: Any, **kwargs: Any) -> Any:
            warnings.warn(text, FutureWarning, stacklevel=2)
            return function(*args, **kwargs)

        return warning_call  # type: ignore[return-value]

    return marked
