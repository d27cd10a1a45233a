"""A picture in a few words: what a model found, `2 person, 1 dog; grass, sky`, or why not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from knet.classes import Category
from knet.errors import one_line
from knet.visualization import DRAWN_SCORE

_LEAST_SHARE = 0.01  # classes of fewer pixels are not told
_MOST = 8  # classes that are told


def describe_result(
    result: Any,
    categories: Sequence[Category],
    *,
    task: str = "panoptic",
    score_threshold: float = DRAWN_SCORE,
) -> str:
    """Things with their number, stuff by name; of a semantic map the classes with their share.

    Args:
        result: of the task, see `knet.visualization.draw_result`.
        categories: of the model.
        task: "panoptic", "instance" or "semantic".
        score_threshold: instances with a lower score do not count.
    """
    names = {(c.is_thing, c.label): c.name for c in categories}
    if task == "semantic":
        by_label = {c.label: c.name for c in categories}
        labels = result.argmax(0).flatten()
        counts = labels.bincount(minlength=max(by_label) + 1).tolist()
        shares = {by_label.get(k, str(k)): n / len(labels) for k, n in enumerate(counts) if n}
        ranked = sorted(shares.items(), key=lambda item: -item[1])
        told = [f"{name} {100 * share:.0f} %" for name, share in ranked if share >= _LEAST_SHARE]
        return _listed(told) or "nothing"
    if task == "instance":
        labels = result.pred_classes[result.scores >= score_threshold].tolist()
        things, stuff = Counter(names[True, label] for label in labels), []
    else:
        segments = result[1]
        things = Counter(names[True, s["category_id"]] for s in segments if s["isthing"])
        stuff = sorted({names[False, s["category_id"]] for s in segments if not s["isthing"]})
    counted = [f"{number} {name}" for name, number in things.most_common()]
    return "; ".join(filter(None, (_listed(counted), _listed(stuff)))) or "nothing"


def describe_problem(path: str | os.PathLike[str], error: BaseException) -> str:
    """Why a picture has no results, in one line that names it."""
    defect = getattr(error, "defect", None)
    text = defect.problem if defect else one_line(error)
    return text if os.fspath(path) in text else f"{os.fspath(path)}: {text}"


def _listed(parts: Sequence[str]) -> str:
    more = [f"{len(parts) - _MOST} more"] if len(parts) > _MOST else []
    return ", ".join([*parts[:_MOST], *more])
