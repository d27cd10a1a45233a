"""How much memory this process has held and can still get, also under limits of a container."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def free_memory(root: str | os.PathLike[str] = "/") -> float:
    """Bytes that can be used without swapping or ending the process; infinite where nobody says.

    It is the smallest of what the machine has available, of what the control groups of this process
    leave (version 1 or 2), and of the rest of its address space (`ulimit -v`). Caches of files
    count as free, since they make room.

    Args:
        root: where /proc and /sys are.
    """
    base = Path(root)
    kilobytes = _number(base / "proc/meminfo", "MemAvailable:")
    machine = 1024 * kilobytes if kilobytes < math.inf else _installed()
    limit, taken = _address_space(base)
    return min([machine, max(limit - taken, 0), *_group_rests(base)])


def address_hint(root: str | os.PathLike[str] = "/") -> str:
    """A sentence on the limit of the address space if that leaves the least, else nothing.

    Libraries take gigabytes of the address space that they never fill.

    Args:
        root: where /proc and /sys are.
    """
    limit, taken = _address_space(Path(root))
    if not limit - taken <= free_memory(root) < math.inf:
        return ""
    return (
        f"The limit is that of the address space, {limit / 2**30:.1f} GB (ulimit -v), of which "
        f"{taken / 2**30:.1f} GB are taken by now, mostly by libraries that do not fill it: raise "
        "it, or limit the memory by a control group. "
    )


def peak_memory() -> int:
    """Bytes of the machine's memory that this process has held at most; 0 where nobody says."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # not on Windows
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _installed() -> float:
    """What the machine has, where it is not Linux."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _address_space(base: Path) -> tuple[float, float]:
    """Its limit for this process, infinite without one, and what is taken."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # not on Windows
        return math.inf, 0
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _number(base / "proc/self/statm")
    if limit == resource.RLIM_INFINITY or pages == math.inf:
        return math.inf, 0
    return limit, pages * resource.getpagesize()


def _group_rests(base: Path) -> Iterator[float]:
    """What each group of this process has left; those above it limit it, too."""
    for line in _lines(base / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, used, cache = "", "memory.max", "memory.current", "inactive_file "
        elif "memory" in controllers.split(","):
            mount, limit, used = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file "
        else:
            continue
        top = base / "sys/fs/cgroup" / mount
        folder = top / path.strip("/")
        # a container may see its own group as the top, under the name that it has outside
        for group in dict.fromkeys([folder, *folder.parents]):
            if group == top or top in group.parents:
                most, now = _number(group / limit), _number(group / used)
                if most < math.inf and now < math.inf:
                    cached = _number(group / "memory.stat", cache)
                    yield max(most - now + (cached if cached < math.inf else 0), 0)


def _number(path: Path, name: str = "") -> float:
    """In the line of a file that begins with a name; infinite without one, or where it is "max"."""
    for line in _lines(path):
        if line.startswith(name):
            word = line.removeprefix(name).split()[:1]
            return float(word[0]) if word and word[0].isdecimal() else math.inf
    return math.inf


def _lines(path: Path) -> list[str]:
    """Empty where the file cannot be read: other systems, and containers, lack some."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
