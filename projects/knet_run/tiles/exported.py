"""An exported model as `knet_run.tiles` sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from knet_run.tiles.segments import (
    SegmentClass,
    Segmenter,
    TileSegments,
    from_classes,
    from_instances,
)


def segmenter_of(
    run: Callable[[Image.Image], Mapping[str, np.ndarray]],
    info: Mapping[str, Any],
    score_threshold: float,
) -> Segmenter:
    """A model in a file of `knet export`, of whose results the richest is taken.

    Args:
        run: gives the outputs by name of an RGB picture, at its size.
        info: the description in the file, see `knet.export.metadata.describe`.
        score_threshold: instances with a lower score are left out.
    """
    task = next(t for t in ("panoptic", "instance", "semantic") if t in info["results"])
    classes = _classes(info["classes"], task)
    places = {label: place for place, (label, _) in enumerate(classes)}

    def segment(pixels: np.ndarray) -> TileSegments:
        found = run(Image.fromarray(pixels))
        if task == "semantic":
            return from_classes(found["semantic_classes"], found["semantic_scores"], places)
        kind = "segment" if task == "panoptic" else task
        scores = found[f"{kind}_scores"].astype(np.float64)
        labels = [places[label] for label in found[f"{kind}_classes"].tolist()]
        if task == "panoptic":
            return TileSegments(found["panoptic_ids"], np.array(labels, np.int64), scores)
        count = np.count_nonzero(scores >= score_threshold)
        masks, places_of = found["instance_masks"][:count], np.array(labels[:count], np.int64)
        return from_instances(masks, places_of, scores[:count], size=pixels.shape[:2])

    return Segmenter([kind for _, kind in classes], segment)


def _classes(entries: Sequence[Mapping[str, Any]], task: str) -> list[tuple[int, SegmentClass]]:
    """Labels, ascending, and classes of the segments of a task."""
    found = []
    for entry in sorted(entries, key=lambda entry: entry["id"]):
        if task != "instance" or entry["isthing"]:
            red, green, blue = entry["color"]
            is_thing = entry["isthing"] and task != "semantic"
            kind = SegmentClass(entry["dataset_id"], entry["name"], is_thing, (red, green, blue))
            found.append((entry["id"], kind))
    return found
