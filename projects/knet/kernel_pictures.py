"""What each kernel of a model does, in pictures.

    sheet = draw_kernel_rounds(image, trace)
    sheet = draw_average_masks(averages)
    paths = write_kernel_pictures(predictor, ["photo.jpg"], "kernels")

Numbers come from `knet.kernel_trace`; every drawing is an (H, W, 3) uint8 RGB array.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from knet.data.custom import register_builtin, require_registered
from knet.data.images import read_picture, save_image
from knet.errors import first_of
from knet.kernel_trace import KernelAverages, KernelTrace, average_masks, trace_kernels
from knet.predictor import KNetPredictor

__all__ = ["draw_kernel_rounds"]

_DPI = 110
_COLORS = "viridis"
_MAX_CLASSES = 12
_LEAST_SCORE = 0.05  # classes below it in every round are not listed, unless they are asked for


def write_kernel_pictures(
    predictor: KNetPredictor,
    pictures: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    num_kernels: int = 8,
    classes: Sequence[str] = (),
) -> list[Path]:
    """Follow the best kernels of each picture: `NAME_rounds.png` and `NAME_classes.png`.

    Args:
        predictor: the model; semantic ones have no class scores.
        pictures: files, of different names.
        folder: for the PNGs; made if missing.
        num_kernels: how many.
        classes: names of those to list scores of; the best ones by default.

    Returns:
        The files' paths.

    Raises:
        DataError, ValueError: a picture cannot be read, or see `trace_kernels`.
    """
    out, paths = Path(folder), []
    out.mkdir(parents=True, exist_ok=True)
    for picture in map(Path, pictures):
        image = _read(predictor, {"file_name": str(picture)})
        trace = trace_kernels(predictor, image, num_kernels=num_kernels)
        drawings = {"rounds": draw_kernel_rounds(image, trace)}
        if classes or trace.class_scores is not None:
            drawings["classes"] = draw_class_scores(trace, classes)
        for name, drawing in drawings.items():
            paths.append(out / f"{picture.stem}_{name}.png")
            save_image(paths[-1], drawing)
    return paths


def write_average_masks(
    predictor: KNetPredictor,
    dataset: str,
    folder: str | os.PathLike[str],
    *,
    num_images: int = 200,
) -> Path:
    """Where each kernel fires in a data set: `DATASET_average.png`.

    Args:
        predictor: the model.
        dataset: a registered data set.
        folder: for the PNG; made if missing.
        num_images: of the data set, from its start.

    Raises:
        UserError: the data set is not registered.
    """
    register_builtin([dataset])
    require_registered(dataset)
    records = DatasetCatalog.get(dataset)[:num_images]

    def images() -> Iterator[np.ndarray]:
        for record in tqdm(records, unit="picture"):
            yield _read(predictor, record)

    path = Path(folder) / f"{dataset}_average.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(path, draw_average_masks(average_masks(predictor, images())))
    return path


def _read(predictor: KNetPredictor, record: Mapping[str, Any]) -> np.ndarray:
    limit = predictor.cfg.INPUT.MAX_PIXELS
    return read_picture(record, image_format="RGB", max_pixels=limit)


def draw_kernel_rounds(image: np.ndarray, trace: KernelTrace) -> np.ndarray:
    """A row a kernel: the image with the final outline, then the mask before and after each round.

    Args:
        image: (H, W, 3) uint8 RGB, that of the trace, at the size of its masks.
        trace: of `trace_kernels`.
    """
    stages, rows = trace.masks.shape[:2]
    columns = stages + 1
    tile_width = 2.1
    tile_height = min(max(tile_width * image.shape[0] / image.shape[1], 0.9), 3.2)
    figure = _figure(columns * tile_width + 1.6, rows * (tile_height + 0.42) + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False)
    titles = ["final outline", "initial", *(f"round {r}" for r in range(1, stages))]
    ious, unsure = trace.iou_with_last(), trace.unsure()
    for ax, title in zip(axes[0], titles):
        ax.set_title(title, fontsize=10, fontweight="bold")
    axes[-1, 0].set_xlabel("pixels", fontsize=8)
    for row in range(rows):
        axes[row, 0].imshow(image)
        _outline(axes[row, 0], trace.masks[-1, row] > 0.5)
        axes[row, 0].set_ylabel(_kernel_name(trace, row), fontsize=9)
        axes[row, 0].tick_params(labelsize=6, length=2)
        for stage, ax in enumerate(axes[row, 1:]):
            ax.imshow(trace.masks[stage, row], vmin=0, vmax=1, cmap=_COLORS)
            ax.set(xticks=[], yticks=[])
            text = f"{_class_text(trace, stage, row)}\nunsure {100 * unsure[stage, row]:.0f} %"
            if stage < stages - 1:
                text += f", IoU with last {ious[stage, row]:.2f}"
            ax.set_xlabel(text, fontsize=8)
    return _render(figure, axes, "mask probability", shrink=min(1.0, 3 / rows), aspect=40)


def draw_class_scores(trace: KernelTrace, classes: Sequence[str] = ()) -> np.ndarray:
    """A panel a round: kernels by classes, with the scores written in.

    Left grey is what has no meaning, because it is neither trained nor used: thing kernels are
    scored on thing classes, a stuff kernel on its own class.

    Args:
        trace: of the kernels.
        classes: names; by default the (at most 12) best ones of these kernels in any round.

    Raises:
        ValueError: a semantic model, whose kernels are its classes; a class that it does not have.
    """
    if trace.class_scores is None:
        raise ValueError("a semantic model has no class scores: its kernels are its classes")
    meant = _meant_classes(trace)
    scores = np.where(meant, trace.class_scores, np.nan)
    if classes:
        columns = _numbers_of(classes, trace.class_names)
    else:
        highest = np.where(meant, trace.class_scores, 0.0).max(axis=(0, 1))
        best = [c for c in np.argsort(-highest, kind="stable") if highest[c] >= _LEAST_SCORE]
        columns = sorted(best[:_MAX_CLASSES] or [int(highest.argmax())])
    rounds, rows = scores.shape[:2]
    figure = _figure(rounds * (0.52 * len(columns) + 0.4) + 2.6, 0.34 * rows + 2.0)
    axes = figure.subplots(1, rounds, squeeze=False, sharey=True)[0]
    for r, ax in enumerate(axes):
        values = scores[r][:, columns]
        ax.set_facecolor("0.9")
        ax.imshow(values, vmin=0, vmax=1, cmap=_COLORS, aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            color = "white" if value < 0.6 else "black"
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
        names = [trace.class_names[c] for c in columns]
        ax.set_xticks(range(len(columns)), names, rotation=45, ha="right", fontsize=9)
        ax.set_title(f"round {r + 1}", fontsize=10, fontweight="bold")
    labels = [_kernel_name(trace, row).replace("\n", " ") for row in range(rows)]
    axes[0].set_yticks(range(rows), labels, fontsize=9)
    return _render(figure, axes, "class score", aspect=25)


def _numbers_of(classes: Sequence[str], names: Sequence[str]) -> list[int]:
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ValueError(
            f"the model has no class {', '.join(unknown)}; it has {first_of(names, _MAX_CLASSES)}"
        )
    return [names.index(name) for name in classes]


def draw_average_masks(averages: KernelAverages) -> np.ndarray:
    """A tile a kernel, all in one colour scale, titled with its number, class and use."""
    count = len(averages.masks)
    columns = min(count, max(4, math.ceil(math.sqrt(count))))
    rows = math.ceil(count / columns)
    figure = _figure(columns * 1.45 + 1.2, rows * 1.68 + 1.0)
    axes = figure.subplots(rows, columns, squeeze=False)
    top = float(averages.masks.max()) or 1.0
    for k, ax in enumerate(axes.flat):
        ax.set(xticks=[], yticks=[])
        if k >= count:
            ax.axis("off")
            continue
        ax.imshow(averages.masks[k], vmin=0, vmax=top, cmap=_COLORS)
        use = f"{100 * averages.used[k]:.0f} %"
        name = f"{averages.classes[k]} {use}" if averages.classes[k] else "not used"
        ax.set_title(f"kernel {k}\n{_short(name)}", fontsize=8)
    figure.suptitle(
        f"Mean mask of each kernel over {averages.num_images} pictures\n"
        f"(most frequent class, share of pictures with a score of at least "
        f"{averages.score_threshold:g})",
        fontsize=9,
    )
    figure.supxlabel("width of the picture", fontsize=9)
    figure.supylabel("height of the picture", fontsize=9)
    return _render(figure, axes, "mean mask probability", shrink=min(1.0, 4 / rows), aspect=25)


def _kernel_name(trace: KernelTrace, row: int) -> str:
    number = int(trace.kernels[row])
    if trace.class_scores is None:
        return f"class {number}\n{trace.class_names[number]}"
    kind = "thing" if number < trace.num_things else "stuff"
    return f"kernel {number}\n({kind})"


def _meant_classes(trace: KernelTrace) -> np.ndarray:
    """(n, K) whether a kernel is trained on a class: things on all things, stuff on its own."""
    classes = np.arange(len(trace.class_names))
    is_thing = trace.kernels < trace.num_things
    own = trace.labels[-1][:, None] == classes
    return np.where(is_thing[:, None], classes < trace.num_thing_classes, own)


def _class_text(trace: KernelTrace, stage: int, row: int) -> str:
    score, label = trace.scores[stage, row], trace.labels[stage, row]
    if trace.class_scores is None:
        return f"{100 * score:.1f} % of the picture"
    return "no class yet" if label < 0 else f"{_short(trace.class_names[label])} {score:.2f}"


def _short(text: str, limit: int = 22) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _outline(ax: Any, mask: np.ndarray) -> None:
    if mask.any() and not mask.all():
        for color, width in (("black", 2.6), ("yellow", 1.3)):
            ax.contour(mask, levels=[0.5], colors=color, linewidths=width)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")


def _render(figure: Figure, axes: np.ndarray, label: str, **options: Any) -> np.ndarray:
    """The figure's pixels, with a bar for the colours of its last picture."""
    image = [ax.images[-1] for ax in axes.flat if ax.images][-1]
    bar = figure.colorbar(image, ax=axes, pad=0.01, **options)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
