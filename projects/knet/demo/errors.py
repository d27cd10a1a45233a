"""The error that ends a program with a message in place of a trace."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """What the user asked for cannot be done; the message says what and how to mend it."""
