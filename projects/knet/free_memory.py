"""How much memory this process can still get, on Linux also under the limits of a container."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_memory"]


def free_memory(root: str | os.PathLike[str] = "/") -> float:
    """Bytes that can be used without swapping or ending the process; infinite where nobody says.

    It is the smallest of what the machine has available and of what the control groups of this
    process leave (version 1 or 2). Caches of files count as free, since they make room.

    Args:
        root: where /proc and /sys are.
    """
    base = Path(root)
    return min([_available(base), *_group_rests(base)])


def _available(base: Path) -> float:
    kilobytes = _table(base / "proc/meminfo", ":").get("MemAvailable")
    if kilobytes is not None:
        return 1024 * kilobytes
    try:  # not on Linux: what the machine has
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _group_rests(base: Path) -> Iterator[float]:
    """What each group of this process has left; those above it limit it, too."""
    for line in _lines(base / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, used, cache = "", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit, used = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        top = base / "sys/fs/cgroup" / mount
        folder = top / path.strip("/")
        # a container may see its own group as the top, under the name that it has outside
        for group in dict.fromkeys([folder, *folder.parents]):
            if group == top or top in group.parents:
                most, now = _number(group / limit), _number(group / used)
                if most < math.inf and now < math.inf:
                    yield max(most - now + _table(group / "memory.stat").get(cache, 0), 0)


def _number(path: Path) -> float:
    """Of a file that holds nothing else; infinite without one, or where it says "max"."""
    text = "".join(_lines(path)).strip()
    return float(text) if text.isdecimal() else math.inf


def _table(path: Path, end: str = "") -> dict[str, float]:
    """Names and numbers of a file of such lines."""
    rows = (line.split() for line in _lines(path))
    return {
        row[0].rstrip(end or None): float(row[1]) for row in rows if row[1:2] and row[1].isdecimal()
    }


def _lines(path: Path) -> list[str]:
    """Empty where the file cannot be read: other systems, and containers, lack some."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
