"""A picture of any size through a model: a label TIFF, COCO's JSON, a table and a drawing.

    with open_picture(path, read=read, rows=1024) as picture:
        found = segment_picture(picture, segmenter, files, tile=(1024, 1024), overlap=128)

In memory are a row of tiles and the runs of some segments, never a mask of the whole picture.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from knet_run.rle import compressed_counts
from knet_run.tiles.grid import Grid
from knet_run.tiles.join import Joined, Joiner
from knet_run.tiles.overview import Overview
from knet_run.tiles.raster import BLOCK, LabelWriter, Picture, open_labels
from knet_run.tiles.runs import RunStore, bounding_box
from knet_run.tiles.segments import Segmenter

# tiles done, all tiles
Progress = Callable[[int, int], object]

_COLUMNS = ("id", "category_id", "class", "isthing", "score", "area", "x", "y", "width", "height")


@dataclass(frozen=True)
class TiledFiles:
    """Where the results of a picture go.

    Attributes:
        labels: a TIFF, 32 bit, the id of the segment of each pixel; 0 is void. It has the
            geo-reference of the picture.
        segments: COCO's JSON of data sets: image, categories, and annotations with run lengths.
        table: a CSV file, a line a segment.
        overview: a drawing of at most 2000 pixels a side.
    """

    labels: Path
    segments: Path
    table: Path
    overview: Path

    @classmethod
    def of(cls, folder: Path, stem: str) -> TiledFiles:
        """Names in a folder."""
        return cls(
            folder / f"{stem}_labels.tif",
            folder / f"{stem}_segments.json",
            folder / f"{stem}_segments.csv",
            folder / f"{stem}_overview.jpg",
        )


def segment_picture(
    picture: Picture,
    segmenter: Segmenter,
    files: TiledFiles,
    *,
    tile: tuple[int, int],
    overlap: int,
    file_name: str,
    image_id: int = 1,
    progress: Progress = lambda done, total: None,
) -> Joined:
    """Run a model over the tiles of a picture and write what it finds, all files or none.

    Args:
        picture: to be read.
        segmenter: the model.
        files: of the results; what is there is replaced. Their folder needs room for the labels a
            second time while the work goes on.
        tile: (height, width) in pixels.
        overlap: pixels that neighbouring tiles share at least.
        file_name, image_id: of the picture in the JSON.
        progress: told of each tile that is done.

    Raises:
        ValueError: tile and overlap do not fit each other, or the picture cannot be read.
        OSError: something cannot be written.
    """
    grid = Grid.of(picture.size, tile, overlap)
    scratch = files.labels.with_name(f"{files.labels.stem}.unfinished")
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    scratch.mkdir()
    try:
        joiner = Joiner(grid, segmenter.classes)
        overview = Overview(picture.size)
        parts = scratch / "parts.tif"
        _segment_tiles(picture, segmenter, grid, joiner, overview, parts, progress)
        joined = joiner.finish()
        fresh = TiledFiles.of(scratch, "fresh")
        runs = _write_labels(fresh.labels, parts, joined, picture)
        image = {"id": image_id, "file_name": file_name}
        _write_segments(fresh, runs, joined, segmenter, picture.size, image)
        drawn = overview.draw(joined.ids, joined.classes, segmenter.classes)
        Image.fromarray(drawn).save(fresh.overview, quality=92)
        for new, old in zip(vars(fresh).values(), vars(files).values()):
            with open(new, "rb") as file:
                os.fsync(file.fileno())
            new.replace(old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return joined


def _segment_tiles(
    picture: Picture,
    segmenter: Segmenter,
    grid: Grid,
    joiner: Joiner,
    overview: Overview,
    path: Path,
    progress: Progress,
) -> None:
    """Write the parts of all tiles to a label TIFF."""
    rows, columns = grid.rows, grid.columns
    width = picture.size[1]
    waiting = np.zeros((0, width), np.uint32)  # rows that fill no block yet
    written = done = 0
    with LabelWriter(path, size=picture.size) as writer:
        for r, c in grid:
            y, x = rows.starts[r], columns.starts[c]
            pixels = picture.window(slice(y, y + rows.size), slice(x, x + columns.size))
            band = joiner.add(r, c, segmenter.segment(pixels))
            overview.add_pixels(
                pixels[rows.core(r), columns.core(c)], rows.cuts[r], columns.cuts[c]
            )
            done += 1
            progress(done, len(grid))
            if band is None:
                continue
            overview.add_parts(band, written + len(waiting))
            waiting = np.concatenate([waiting, band])
            last = r + 1 == len(rows.starts)
            whole = len(waiting) if last else len(waiting) // BLOCK * BLOCK
            if whole:
                writer.write(written, 0, waiting[:whole])
            written += whole
            waiting = waiting[whole:].copy()


def _write_labels(path: Path, parts: Path, joined: Joined, picture: Picture) -> RunStore:
    """The parts as segments, to the label TIFF and as run lengths."""
    height, width = picture.size
    runs = RunStore(parts.parent, height=height, count=len(joined.classes))
    with (
        open_labels(parts) as read,
        LabelWriter(path, size=picture.size, place=picture.place, nodata=0) as writer,
    ):
        for x in range(0, width, BLOCK):
            ids = joined.ids[read(slice(x, min(x + BLOCK, width)))]
            writer.write(0, x, ids)
            runs.add(x, ids)
    return runs


def _write_segments(
    files: TiledFiles,
    runs: RunStore,
    joined: Joined,
    segmenter: Segmenter,
    size: tuple[int, int],
    image: dict[str, object],
) -> None:
    """COCO's JSON and the table, segment by segment."""
    kinds = [segmenter.classes[k] for k in joined.classes.tolist()]
    categories = [
        {"id": c.id, "name": c.name, "isthing": int(c.is_thing), "color": list(c.color)}
        for c in segmenter.classes
    ]
    image = {**image, "height": size[0], "width": size[1]}
    with (
        open(files.segments, "w", encoding="utf-8") as file,
        open(files.table, "w", encoding="utf-8", newline="") as lines,
    ):
        rows = csv.writer(lines, lineterminator="\n")
        rows.writerow(_COLUMNS)
        file.write(f'{{"images": [{json.dumps(image)}], "categories": {json.dumps(categories)}, ')
        file.write('"annotations": [')
        numbers = zip(kinds, joined.scores.tolist(), joined.areas.tolist(), runs)
        begin = "\n"
        for number, (kind, score, area, (starts, lengths)) in enumerate(numbers, start=1):
            if not area:  # a class that does not occur
                continue
            box = bounding_box(starts, lengths, size[0])
            counts = compressed_counts(starts, lengths, size[0] * size[1])
            record = {
                "id": number, "image_id": image["id"], "category_id": kind.id, "area": area,
                "bbox": box, "iscrowd": 0, "score": score,
                "segmentation": {"size": list(size), "counts": counts},
            }  # fmt: skip
            file.write(begin + json.dumps(record))
            begin = ",\n"
            isthing = int(kind.is_thing)
            rows.writerow([number, kind.id, kind.name, isthing, f"{score:.4f}", area, *box])
        file.write("\n]}\n")
