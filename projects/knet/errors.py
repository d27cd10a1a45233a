"""Errors that are meant for a user: one line and an exit status in place of a stack trace."""

from __future__ import annotations

import difflib
import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from knet.free_memory import address_hint

__all__ = ["UserError"]

# environment variable: 1 shows where an error came from
TRACEBACK = "KNET_TRACEBACK"
_PACKAGE = str(Path(__file__).parent) + os.sep


class UserError(Exception):
    """What the user asked for cannot be done; the message says what and how to mend it."""


# What the package raises on purpose, with a message that names the thing and the mend.
MEANT = (UserError, OSError, ValueError, KeyError, ImportError, FloatingPointError)
# in errors for want of memory: PyTorch's, the system's and, the last, oneDNN's
_NO_MEMORY = (
    *("allocate memory", "out of memory", "enough memory", "bad_alloc", "bad allocation"),
    "could not create a primitive",
)
# of the system, about the one file that was asked for; a picture that is broken has no number
_OF_THE_FILE = (
    *(None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO),
)
_ASKED = re.compile(r"allocate (\d[\d.]* \w+)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library could not get memory, on the machine or its GPU."""
    told = isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    return told or isinstance(error, MemoryError)


def system_fault(error: BaseException | None) -> OSError | None:
    """The error of the system behind an error, if it is no fault of the file that was read.

    A file system that has gone, too many open files, a disk that fails: another try may succeed.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno not in _OF_THE_FILE:
            return error
        error = error.__cause__
    return None


def is_meant(error: BaseException | None) -> bool:
    """Whether an error is for the user: one of `MEANT`, or for want of memory."""
    return isinstance(error, MEANT) or (error is not None and is_out_of_memory(error))


def one_line(error: BaseException) -> str:
    """The message of an error in one line.

    An error that did not come from this package's own lines (of a library, or by accident) says
    how to see where it did; one for want of memory, what takes less.
    """
    if is_out_of_memory(error):
        asked = _ASKED.search(str(error))
        return (
            f"out of memory{f' ({asked[1]} more were asked for)' if asked else ''}. "
            f"{address_hint()}In training raise SOLVER.ACCUMULATION_STEPS, which keeps the batch, "
            "or lower SOLVER.IMS_PER_BATCH; or take smaller images (INPUT.MIN_SIZE_TRAIN, "
            "MIN_SIZE_TEST) or crops (INPUT.CROP)"
        )
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
    except Exception as error:
        if not is_meant(error):
            raise
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
    return not is_meant(error) or _trace_wanted()


def _trace_wanted() -> bool:
    return os.environ.get(TRACEBACK, "") not in ("", "0")
