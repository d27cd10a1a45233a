"""Loss, learning rate and scores over the steps of a training, as one picture."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from knet.evaluation.scores import MAIN_SCORES
from knet.files import whole_file

__all__ = ["curves_png", "draw_curves", "read_curves"]

# what is drawn beside the main scores: the losses' sum and the rate
_LOSS, _RATE = "total_loss", "lr"

Curves = dict[str, dict[int, float]]


def read_curves(lines: Iterable[str]) -> Curves:
    """Values by name and iteration, of a `metrics.json` as Detectron2 writes it.

    Where a training was resumed from an earlier step, or started anew in the folder, the later
    lines count.

    Args:
        lines: of JSON; one that a kill cut off is left out.
    """
    curves: Curves = {}
    last = -1
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # half a line, perhaps with the first one of the resumed training behind it
        iteration = values.pop("iteration", None)
        if iteration is None:
            continue
        if _LOSS in values:
            if iteration <= last:  # went back
                for curve in curves.values():
                    for later in [i for i in curve if i >= iteration]:
                        del curve[later]
            last = iteration
        for name, value in values.items():
            if isinstance(value, (int, float)):
                curves.setdefault(name, {})[iteration] = value
    return curves


def draw_curves(metrics_json: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Draw the curves of a training into a PNG file, written whole.

    Args:
        metrics_json: in the training's OUTPUT_DIR.
        out: the PNG file.

    Raises:
        OSError: a file cannot be read or written.
    """
    with whole_file(out) as unfinished:
        unfinished.write_bytes(curves_png(metrics_json))


def curves_png(metrics_json: str | os.PathLike[str]) -> bytes:
    """The same as the bytes of a PNG file; OSError without a `metrics.json`."""
    text = Path(metrics_json).read_text(encoding="utf-8", errors="replace")
    curves = read_curves(text.splitlines())
    scores = {
        name: curve
        for name, curve in curves.items()
        if name.endswith(MAIN_SCORES) and "-" not in name
    }
    figure = Figure(figsize=(12, 3.4), dpi=80, layout="constrained")
    for axes, title, shown in zip(
        figure.subplots(1, 3),
        ("total loss", "learning rate", "scores (%)"),
        ({_LOSS: curves.get(_LOSS, {})}, {_RATE: curves.get(_RATE, {})}, scores),
    ):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        for name, curve in shown.items():
            steps = sorted(curve)
            dots = "." if len(steps) <= 50 else ""
            axes.plot(steps, [curve[step] for step in steps], marker=dots, label=name)
        if shown is scores and scores:
            axes.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()
