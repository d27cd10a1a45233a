"""What the page shows of a photo. The network runs once; views and thresholds follow from that."""

from __future__ import annotations

import math
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from knet.data.defects import DataError, Defect
from knet.data.images import check_picture, read_picture, save_image
from knet.files import whole_file, write_json
from knet.kernel_pictures import draw_kernel_rounds
from knet.kernel_trace import KernelTrace, trace_kernels
from knet.modeling.knet import KNet
from knet.predictor import KNetPredictor, Prediction
from knet.results.coco_files import ResultFiles
from knet.visualization import DRAWN_SCORE, TASKS, draw_result

KERNELS = "kernels"  # the view of the rounds, beside those of `TASKS`

_LONG_SIDE = 1280  # of what is shown, in pixels
_NUM_KERNELS = 6
_ROUNDS_SIDE = 480  # of the masks in the view of the rounds
# defects of files that can be mended; the mends of others are meant for data sets
_MENDED = ("image-depth", "image-too-large")


@dataclass(frozen=True)
class Thresholds:
    """What is left out of results, see `InstanceSelection` and `PanopticFusion`.

    Attributes:
        score, mask: of instances.
        thing, overlap: of panoptic segments.
    """

    score: float
    mask: float
    thing: float
    overlap: float

    @classmethod
    def of(cls, predictor: KNetPredictor) -> Thresholds | None:
        """The model's own, but that of scores where it keeps all; None of a semantic model."""
        options = predictor.options
        if options is None:
            return None
        return cls(
            score=max(options.score_threshold, DRAWN_SCORE),
            mask=options.mask_threshold,
            thing=options.thing_threshold,
            overlap=options.overlap_threshold,
        )


@dataclass(eq=False)
class Photo:
    """A photo that the network has looked at.

    Attributes:
        name: of its file.
        pixels: (H, W, 3) uint8 RGB, upright.
        notes: what its reader left out of the file, a sentence each.
        prediction: the network's.
        trace: of the kernels, once they were asked for.
    """

    name: str
    pixels: np.ndarray
    notes: Sequence[str]
    prediction: Prediction
    trace: KernelTrace | None = None


@dataclass(frozen=True)
class Found:
    """An object or class in a photo: its share of the photo in [0, 1], its area in pixels of it."""

    name: str
    score: float | None
    share: float
    pixels: int


@dataclass(frozen=True)
class Shown:
    """A view of a photo.

    Attributes:
        before, after: (H', W', 3) uint8 RGB of one size, the photo and the drawing; in the view of
            the kernels there is no `before`.
        found: by descending score, classes by descending area; none in the view of the kernels.
    """

    before: np.ndarray | None
    after: np.ndarray
    found: Sequence[Found]


def views_of(predictor: KNetPredictor) -> list[str]:
    """The views that a model has: of `TASKS`, and `KERNELS` where they can be followed."""
    options, model = predictor.options, predictor.model
    views = [t for t in TASKS if (t == "semantic" if options is None else getattr(options, t))]
    # one look at the whole image, see `trace_kernels`
    return [*views, KERNELS] if isinstance(model, KNet) and model.window is None else views


def look(predictor: KNetPredictor, path: str | os.PathLike[str]) -> Photo:
    """Read a picture file and run the network on it.

    Raises:
        ValueError: as of `KNetPredictor.__call__`; the file is named without its folder.
    """
    name = Path(path).name
    record = {"file_name": os.fspath(path)}
    max_pixels = predictor.cfg.INPUT.MAX_PIXELS
    try:
        pixels = read_picture(record, image_format="RGB", max_pixels=max_pixels)
        defects = check_picture(record, max_pixels=max_pixels)[1]
    except DataError as error:
        defect = error.defects[0]
        mend = defect.mend if defect.kind in _MENDED else "choose another picture"
        # the folder is the server's, not the user's
        problem = defect.problem.replace(os.fspath(path), name)
        raise ValueError(Defect(defect.kind, name, "", problem, mend, "error")) from error
    notes = [f"{name} {d.problem}" for d in defects if d.kind == "image-mode"]
    return Photo(name, pixels, notes, predictor.predict(pixels))


def show(predictor: KNetPredictor, photo: Photo, view: str, thresholds: Thresholds | None) -> Shown:
    """Draw a view of a photo, at 1280 pixels at most, and list what it shows.

    Args:
        predictor: that looked at the photo.
        photo: of `look`; it keeps the kernels' trace.
        view: of `views_of`.
        thresholds: None for a semantic model.

    Raises:
        ValueError: no memory for these results.
    """
    if view == KERNELS:
        small = shrunk(photo.pixels, _ROUNDS_SIDE)
        if photo.trace is None:
            photo.trace = trace_kernels(
                predictor, photo.pixels, num_kernels=_NUM_KERNELS, size=small.shape[:2]
            )
        return Shown(None, draw_kernel_rounds(small, photo.trace), [])
    small = shrunk(photo.pixels, _LONG_SIDE)
    result = _results(predictor, photo, view, thresholds, small.shape[:2])[TASKS[view]]
    after = draw_result(small, result, predictor.metadata, task=view, score_threshold=0.0)
    found = [
        Found(name, score, area / small[..., 0].size, round(area * _ratio(photo, small)))
        for name, score, area in _found(predictor, result, view)
    ]
    return Shown(_resized(small, after.shape[1::-1]), after, found)


def write_zip(
    predictor: KNetPredictor,
    photo: Photo,
    view: str,
    thresholds: Thresholds | None,
    folder: str | os.PathLike[str],
) -> Path:
    """Pack a view of a photo: drawing, results at the photo's size, settings.

    Args:
        predictor, photo, view, thresholds: as of `show`.
        folder: where to write `NAME_VIEW.zip`. In it are `NAME_VIEW.png`, `settings.json` and the
            files of `ResultFiles`; in the view of the kernels these are of the model's first view.

    Raises:
        ValueError: no memory for these results.
        OSError: it cannot be written.
    """
    stem = Path(photo.name).stem
    drawing = show(predictor, photo, view, thresholds).after
    task = views_of(predictor)[0] if view == KERNELS else view
    results = _results(predictor, photo, task, thresholds, photo.prediction.size)
    target = Path(folder) / f"{stem}_{view}.zip"
    with tempfile.TemporaryDirectory() as held:
        inside = Path(held)
        with ResultFiles(inside, categories=predictor.categories) as files:
            files.add({TASKS[task]: results[TASKS[task]]}, image_id=1, file_name=photo.name)
        save_image(inside / f"{stem}_{view}.png", drawing)
        settings = {"view": view, "results": task}
        if thresholds is not None:
            settings["thresholds"] = asdict(thresholds)  # type: ignore[assignment]
        write_json(inside / "settings.json", settings)
        with whole_file(target) as unfinished, zipfile.ZipFile(unfinished, "w") as packed:
            for file in sorted(p for p in inside.rglob("*") if p.is_file()):
                packed.write(file, file.relative_to(inside))
    return target


def shrunk(pixels: np.ndarray, long_side: int) -> np.ndarray:
    """(H', W', 3) of a picture (H, W, 3), the longer side `long_side` at most."""
    height, width = pixels.shape[:2]
    factor = min(1.0, long_side / max(height, width))
    return _resized(pixels, (max(1, round(width * factor)), max(1, round(height * factor))))


def _results(
    predictor: KNetPredictor,
    photo: Photo,
    task: str,
    thresholds: Thresholds | None,
    size: Sequence[int],
) -> dict[str, Any]:
    """The results of one task at a size (height, width)."""
    model_options = predictor.options
    if model_options is None or thresholds is None:
        return predictor.results(photo.prediction, size=size)
    part = math.prod(size) / math.prod(photo.prediction.size)
    return predictor.results(
        photo.prediction,
        size=size,
        **{kind: kind == task for kind in TASKS},
        score_threshold=thresholds.score,
        mask_threshold=thresholds.mask,
        thing_threshold=thresholds.thing,
        overlap_threshold=thresholds.overlap,
        min_area=math.ceil(model_options.min_area * part),
    )


def _found(
    predictor: KNetPredictor, result: Any, view: str
) -> Iterator[tuple[str, float | None, int]]:
    """Name, score and area of what a result holds."""
    names = {(c.is_thing, c.label): c.name for c in predictor.categories}
    if view == "panoptic":
        for segment in result[1]:
            name = names[bool(segment["isthing"]), segment["category_id"]]
            yield name, segment["score"], segment["area"]
    elif view == "instance":
        areas = result.pred_masks.sum(dim=(1, 2)).tolist()
        labels, scores = result.pred_classes.tolist(), result.scores.tolist()
        for label, score, area in zip(labels, scores, areas):
            yield names[True, label], score, area
    else:
        by_label = {label: name for (_, label), name in names.items()}
        areas = result.argmax(dim=0).flatten().bincount(minlength=len(result))
        for label in areas.argsort(descending=True, stable=True).tolist():
            if areas[label]:
                yield by_label[label], None, int(areas[label])


def _ratio(photo: Photo, shown: np.ndarray) -> float:
    """Pixels of the photo in one that is shown."""
    return photo.pixels[..., 0].size / shown[..., 0].size


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H', W', 3) at (width, height)."""
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
