"""Errors that are meant for a user: one line and an exit status in place of a stack trace."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

# environment variable: 1 shows where an error came from
TRACEBACK = "KNET_TRACEBACK"
_PACKAGE = str(Path(__file__).parent) + os.sep


class UserError(Exception):
    """What the user asked for cannot be done; the message says what and how to mend it."""


# What the package raises on purpose, with a message that names the thing and the mend.
MEANT = (UserError, OSError, ValueError, KeyError, ImportError, FloatingPointError)


def one_line(error: BaseException) -> str:
    """The message of an error in one line.

    An error that did not come from this package's own lines (of a library, or by accident) says
    how to see where it did.
    """
    # KeyError's own text is in quotes
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = " ".join(text.split()) or type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, UserError) or (frames and frames[-1].filename.startswith(_PACKAGE)):
        return text
    return f"{text} ({type(error).__name__}; {TRACEBACK}=1 shows where)"


def first_of(names: Sequence[object], limit: int = 5) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(map(str, names[:limit])) + (f" and {more} more" if more > 0 else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that a name may be a slip of the pen for; all of them if none is near."""
    names = sorted(known)
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names)


def run_command(name: str, main: Callable[[], int | None]) -> int:
    """Run a program's main function; returns the exit status.

    An error that is meant for the user is one line on stderr and status 2, with the stack trace
    before it if KNET_TRACEBACK is 1. Any other exception goes on as it is: it is a defect of ours.

    Args:
        name: of the program, before the message.
        main: returns the exit status, or None for 0.
    """
    try:
        return main() or 0
    except MEANT as error:
        if _trace_wanted():
            traceback.print_exc()
        sys.stdout.flush()
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def is_shown(record: logging.LogRecord) -> bool:
    """A filter for handlers of the terminal: whether a log record should be shown there.

    Libraries log an exception before it goes on to `run_command`, which tells it in one line.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, MEANT) or _trace_wanted()


def _trace_wanted() -> bool:
    return os.environ.get(TRACEBACK, "") not in ("", "0")
