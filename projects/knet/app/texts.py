"""Words and small pieces of HTML of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from knet.app.views import KERNELS, Found, Photo
from knet.classes import Category

LABELS = {
    "panoptic": "Panoptic",
    "instance": "Instance",
    "semantic": "Semantic",
    KERNELS: "Kernels",
}
SAID = {
    "panoptic": "A class for every pixel, and things one by one.",
    "instance": "Every object by itself.",
    "semantic": "A class for every pixel.",
    KERNELS: "How masks form, round by round.",
}
EMPTY = "Drop a photo, and what the model sees in it appears here."


def header(title: str, categories: Sequence[Category]) -> str:
    """The head of the page: the model's name and its classes."""
    rows = ""
    for singular, plural, is_thing in (
        ("thing", "things", True),
        ("stuff class", "stuff classes", False),
    ):
        names = [c.name for c in categories if c.is_thing == is_thing]
        if names:
            kind = singular if len(names) == 1 else plural
            rows += f"<p><b>{len(names)} {kind}</b> {escape(', '.join(names))}</p>"
    count = len(categories)
    return (
        f"<header id='head'><h1>{escape(title)}</h1>"
        "<p>K-Net: every object and every region is found by a kernel of its own.</p>"
        f"<details><summary>{count} {'class' if count == 1 else 'classes'}</summary>{rows}"
        "</details></header>"
    )


def notice(*texts: str, kind: str = "said") -> str:
    """A line for each text. Of a kind: "said", "empty", or "wrong", which is spoken at once."""
    role = "alert" if kind == "wrong" else "status"
    lines = "".join(f"<p>{escape(text)}</p>" for text in texts)
    return f"<div class='notice {kind}' role='{role}'>{lines}</div>"


def summary(photo: Photo, view: str, found: Sequence[Found]) -> str:
    """What a view shows, in one line."""
    height, width = photo.prediction.size
    size = f"{photo.name}, {width}x{height} pixels"
    if view == KERNELS:
        return f"{size}: a row a kernel, those with the best scores."
    if not found:
        return f"{size}: nothing found. Lower thresholds may show more."
    word = {"panoptic": "segment", "instance": "object", "semantic": "class"}[view]
    plural = "" if len(found) == 1 else "es" if word.endswith("s") else "s"
    return f"{size}: {len(found)} {word}{plural} found."


def table_rows(found: Sequence[Found]) -> dict[str, Any]:
    """What was found, as gradio's tables take it."""
    scored = any(f.score is not None for f in found)
    head = ["class", *(["score"] if scored else []), "area (pixels)", "area (%)"]
    rows = [
        [f.name, *([round(f.score or 0.0, 3)] if scored else []), f.pixels, _percent(f.share)]
        for f in found
    ]
    return {"headers": head, "data": rows}


def _percent(share: float) -> float:
    return round(100 * share, 2)
