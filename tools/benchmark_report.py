"""Tables and JSON of a benchmark."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch
from benchmark_laps import quartiles

Rounds = Sequence[dict[str, float]]

# figures that are sums of stages
SUMS = {
    "heads + post-processing": ("heads", "post-processing"),
    "neck + heads + post-processing": ("neck", "heads", "post-processing"),
    "step": ("targets", "forward", "matching", "losses", "backward", "optimiser"),
}


def with_sums(figures: dict[str, float]) -> dict[str, float]:
    """Figures of stages, and those of `SUMS` whose stages are all there."""
    out = dict(figures)
    for name, stages in SUMS.items():
        if all(stage in figures for stage in stages):
            out[name] = sum(figures[stage] for stage in stages)
    return out


def time_rows(
    ours: Rounds,
    reference: Rounds,
    *,
    products: dict[str, dict[str, float]],
    rate: float,
) -> list[dict[str, Any]]:
    """One row a stage.

    Args:
        ours, reference: seconds of every stage, in the same rounds.
        products: floating point operations of each side's stages.
        rate: of a matrix product, in operations a second.

    Returns:
        Dicts of `stage`, `ours` and `reference` (quartiles in seconds), `ratio` (median over the
        rounds), `gflop` of each side, `limit` (seconds that our products take at `rate`) and
        `over_limit` (median of ours by that); None where there are no products.
    """
    ours, reference = [with_sums(r) for r in ours], [with_sums(r) for r in reference]
    counts = {side: with_sums(stages) for side, stages in products.items()}
    rows = []
    for stage in ours[0]:
        times = [r[stage] for r in ours], [r[stage] for r in reference]
        ratios = [a / max(b, 1e-9) for a, b in zip(*times)]
        limit = counts["ours"].get(stage, 0.0) / rate
        middle = quartiles(times[0])[1]
        rows.append(
            {
                "stage": stage,
                "ours": quartiles(times[0]),
                "reference": quartiles(times[1]),
                "ratio": quartiles(ratios)[1],
                "gflop": {side: stages.get(stage, 0.0) / 1e9 for side, stages in counts.items()},
                "limit": limit or None,
                "over_limit": middle / limit if limit else None,
            }
        )
    return rows


def format_times(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of `time_rows`, in milliseconds."""
    lines = [
        f"| {title} | ours, ms | reference, ms | ratio | GFLOP | their time, ms | ours / that |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gflop = f"{row['gflop']['ours']:.1f} ({row['gflop']['reference']:.1f})"
        limit, over = row["limit"], row["over_limit"]
        lines.append(
            f"| {row['stage']} | {_spread(row['ours'])} | {_spread(row['reference'])} "
            f"| {row['ratio']:.2f} | {gflop if limit else ''} "
            f"| {f'{limit * 1e3:.0f}' if limit else ''} | {f'{over:.2f}' if limit else ''} |"
        )
    return "\n".join(lines)


def _spread(seconds: Sequence[float]) -> str:
    low, middle, high = (f"{1e3 * s:.0f}" if s >= 0.02 else f"{1e3 * s:.1f}" for s in seconds)
    return f"{middle} ({low} to {high})"


def memory_rows(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Dicts of `part`, `ours` and `reference` in bytes, `ratio`; None what was not measured."""
    rows = []
    for part, ours in found["ours"].items():
        reference = found["reference"].get(part)
        ratio = ours / max(reference, 1.0) if reference is not None else None
        rows.append({"part": part, "ours": ours, "reference": reference, "ratio": ratio})
    return rows


def format_memory(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of `memory_rows`, in MB of 10^6 bytes."""
    lines = ["| peak memory | ours, MB | reference, MB | ratio |", "|---|---|---|---|"]
    for row in rows:
        reference, ratio = "not run", ""
        if row["reference"] is not None:
            reference, ratio = f"{row['reference'] / 1e6:.0f}", f"{row['ratio']:.2f}"
        lines.append(f"| {row['part']} | {row['ours'] / 1e6:.0f} | {reference} | {ratio} |")
    return "\n".join(lines)


def machine(device: str, dtype: str) -> dict[str, Any]:
    """Device, threads, type and versions."""
    processor = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "device": device,
        "processor": processor,
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
