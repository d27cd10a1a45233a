"""Pictures of any size through a model, tile by tile.

done = predict_tiles(predictor, ["city.tif"], tile=1024, overlap=128, output="found")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from knet.data.images import MAX_PIXELS, read_picture
from knet.errors import UserError
from knet.predict.drawers import possible_task, richest_task
from knet.predict.files import find_pictures, require_unique_stems, writable_folder
from knet.predict.run import Model, Predicted, loaded, tell
from knet.predictor import KNetPredictor
from knet.results.coco_files import image_ids
from knet.visualization import DRAWN_SCORE, TASKS, with_colors
from knet_run.tiles.segments import (
    SegmentClass,
    Segmenter,
    TileSegments,
    from_classes,
    from_instances,
)


def predict_tiles(
    model: Model,
    inputs: Sequence[str],
    *,
    tile: int,
    overlap: int | None = None,
    output: str,
    task: str | None = None,
    score_threshold: float = DRAWN_SCORE,
    say: Callable[[str], None] = tell,
) -> Predicted:
    """Run a model over the tiles of pictures, and write `knet_run.tiles.run.TiledFiles` of each.

    Each tile goes through the model as a picture would. TIFFs are read tile by tile, whatever
    their size; others are read whole, up to INPUT.MAX_PIXELS.

    Args:
        model, inputs, task, say: see `knet.predict.run.predict_pictures`.
        tile: pixels a side.
        overlap: pixels that neighbouring tiles share at least; an eighth of a tile by default.
        output: folder of the results; what is there is replaced.
        score_threshold: instances with a lower score are left out.

    Raises:
        UserError: there is no picture, tile and overlap do not fit each other, or something cannot
            be written. What was finished is kept.
    """
    try:
        from knet_run.tiles.pictures import segment_pictures  # needs rasterio
    except ImportError as error:
        raise UserError(str(error)) from error

    found = find_pictures(inputs)
    if not found.pictures:
        raise UserError("; ".join(found.problems) or "no picture is named")
    for text in [*(f"error: {problem}" for problem in found.problems), *found.left_out]:
        say(text)
    require_unique_stems(found.pictures, "--output")
    limit = MAX_PIXELS

    def segmenter() -> Segmenter:
        nonlocal limit
        predictor = loaded(model)
        limit = predictor.cfg.INPUT.MAX_PIXELS
        return segmenter_of(predictor, task, score_threshold)

    def read(path: Path) -> np.ndarray:
        return read_picture({"file_name": str(path)}, image_format="RGB", max_pixels=limit)

    folder = writable_folder(output, "--output")
    try:
        done = segment_pictures(
            segmenter,
            found.pictures,
            ids=image_ids(found.pictures),
            folder=folder,
            tile=tile,
            overlap=overlap,
            read=read,
            say=say,
        )
    except ValueError as error:  # of tiles and files; those of pictures were told
        raise UserError(str(error)) from error
    return Predicted(
        count=len(done.found),
        total=len(found.pictures),
        problems=len(found.problems) + len(done.problems),
        found=done.found,
        files={path: files.labels for path, files in done.files.items()},
    )


def segmenter_of(
    predictor: KNetPredictor, task: str | None = None, score_threshold: float = DRAWN_SCORE
) -> Segmenter:
    """A model as `knet_run.tiles` sees it.

    Args:
        predictor: the model.
        task: "panoptic", "instance" or "semantic"; the richest by default.
        score_threshold: instances with a lower score are left out.

    Raises:
        UserError: the model does not give that task.
    """
    task = possible_task(predictor, task) if task else richest_task(predictor)
    classes = _classes(predictor, task)
    places = {label: place for place, (label, _) in enumerate(classes)}
    options: dict[str, Any] = {}
    if predictor.options is not None:
        options = {kind: kind == task for kind in TASKS}
        options["score_threshold"] = max(predictor.options.score_threshold, score_threshold)

    def segment(pixels: np.ndarray) -> TileSegments:
        result = predictor.results(predictor.predict(pixels), **options)[TASKS[task]]
        if task == "semantic":
            best, labels = (values.cpu().numpy() for values in result.max(dim=0))
            return from_classes(labels, best, places)
        if task == "instance":
            masks = result.pred_masks.cpu().numpy()
            labels = [places[label] for label in result.pred_classes.tolist()]
            scores = result.scores.cpu().double().numpy()
            return from_instances(masks, np.array(labels, np.int64), scores, size=masks.shape[1:])
        ids, segments = result
        labels = [places[segment["category_id"]] for segment in segments]
        scores = np.array([segment["score"] for segment in segments], np.float64)
        return TileSegments(ids.cpu().numpy(), np.array(labels, np.int64), scores)

    return Segmenter([kind for _, kind in classes], segment)


def _classes(predictor: KNetPredictor, task: str) -> list[tuple[int, SegmentClass]]:
    """Labels, ascending, and classes of the segments of a task."""
    colored = with_colors(predictor.metadata)
    found = []
    for c in sorted(predictor.categories, key=lambda c: c.label):
        if task != "instance" or c.is_thing:
            red, green, blue = colored.get(f"{'thing' if c.is_thing else 'stuff'}_colors")[c.label]
            is_thing = c.is_thing and task != "semantic"
            found.append((c.label, SegmentClass(c.id, c.name, is_thing, (red, green, blue))))
    return found
