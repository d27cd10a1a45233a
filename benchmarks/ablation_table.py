"""The table of the ablation: rows in, the generated part of a page out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ablation_plan import BASE, SCORES, STEPS, Variant

Row = Mapping[str, Any]

_BLOCK = re.compile(r"(<!-- tables -->\n).*?(<!-- end of tables -->)", re.DOTALL)
_HEAD = ("", "seeds", "mean", f"to {BASE}", "steps", "step", "test", "memory, MB", "parameters, M")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a table; none if it is not there yet.

    Raises:
        ValueError: a line is no JSON; with its number.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; remove it") from error
    return rows


def append_row(path: Path, row: Row) -> None:
    """Add a line to a table, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as table:
        table.write(json.dumps(row) + "\n")


def known_times(
    rows: Sequence[Row], data: str, variant: str, length: float, threads: int
) -> dict[str, float]:
    """Shares of today's times, `step` and `test`, each of the first row of any seed that has it.

    Of the same length alone: another may come from another processor, and seeds have equal steps.
    """
    wanted = (data, variant, length, threads)
    times: dict[str, float] = {}
    for row in rows:
        if (row["data"], row["variant"], row["length"], row["threads"]) == wanted:
            times = {key: row[key] for key in ("step", "test") if key in row} | times
    return times


def with_tables(text: str, rows: Sequence[Row], variants: Sequence[Variant]) -> str:
    """A page whose block between two comments is made anew.

    Args:
        text: with the lines `<!-- tables -->` and `<!-- end of tables -->`.
        rows: of the table.
        variants: in the order of the page; rows of other names come last.

    Raises:
        ValueError: the page has no such block.
    """
    if not _BLOCK.search(text):
        raise ValueError("the page has no <!-- tables --> and <!-- end of tables -->")
    made = legend(rows, variants) + tables(rows, variants)
    return _BLOCK.sub(lambda block: block[1] + made + block[2], text)


def legend(rows: Sequence[Row], variants: Sequence[Variant]) -> str:
    """What the rows are: the source of each idea, what it does, and its keys."""
    shown = {row["variant"] for row in rows}
    lines = ["| row | from | what it is | keys |", "|---|---|---|---|"]
    for variant in variants:
        if variant.name in shown:
            keys = dict.fromkeys(key for data in variant.data for key in variant.keys(data))
            names = ", ".join(f"`{key.removeprefix('MODEL.KNET.')}`" for key in keys)
            lines.append(f"| {variant.name} | {variant.source} | {variant.what} | {names} |")
    return "\n".join(lines) + "\n\n"


def tables(rows: Sequence[Row], variants: Sequence[Variant]) -> str:
    """A table for each data set and length of the trainings; values are means over the seeds."""
    order = [variant.name for variant in variants]
    kinds = sorted({_kind(row) for row in rows}, key=lambda kind: ([*SCORES].index(kind[0]), kind))
    parts = []
    for data, length, threads in kinds:
        by_name: dict[str, list[Row]] = {}
        for row in rows:
            if _kind(row) == (data, length, threads):
                by_name.setdefault(row["variant"], []).append(row)
        names = sorted(by_name, key=lambda name: order.index(name) if name in order else len(order))
        base = by_name.get(BASE)
        score, steps = SCORES[data].split("/")[1], round(length * STEPS[data])
        lines = [
            f"### {data.capitalize()}: {score}, the time of {steps:,} steps of today's recipe",
            "",
            f"| {' | '.join(_HEAD)} |",
            "|---" + "|---:" * (len(_HEAD) - 1) + "|",
        ]
        lines += [f"| {' | '.join(_cells(name, by_name[name], base, data))} |" for name in names]
        parts.append("\n".join(lines) + "\n\n")
    return "".join(parts)


def effect(rows: Sequence[Row], base: Sequence[Row], data: str) -> str:
    """Mean difference of scores to rows of today's recipe, with its sign; empty if none compare.

    Of the same seeds, whose luck is partly the same.
    """
    scores = {row["seed"]: row["scores"][SCORES[data]] for row in base}
    pairs = [
        row["scores"][SCORES[data]] - scores[row["seed"]] for row in rows if row["seed"] in scores
    ]
    return f"{mean(pairs):+.1f}" if pairs else ""


def _kind(row: Row) -> tuple[str, float, int]:
    return row["data"], row["length"], row["threads"]


def _cells(name: str, rows: Sequence[Row], base: Sequence[Row] | None, data: str) -> list[str]:
    rows = sorted(rows, key=lambda row: row["seed"])
    scores = [row["scores"][SCORES[data]] for row in rows]

    def of_all(key: str, digits: int) -> str:
        values = [row[key] for row in rows if key in row]
        return f"{mean(values):,.{digits}f}" if values else ""

    return [
        name,
        ", ".join(f"{score:.1f}" for score in scores),
        f"{mean(scores):.1f}",
        effect(rows, base or (), data) if name != BASE else "",
        of_all("steps", 0),
        of_all("step", 2),
        of_all("test", 2),
        of_all("memory_mb", 0),
        of_all("parameters", 2),
    ]
