"""Pictures one after the other, whatever the model is: progress, errors, files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from knet_run.tiles.grid import Grid
from knet_run.tiles.raster import open_picture
from knet_run.tiles.run import TiledFiles, segment_picture
from knet_run.tiles.segments import Segmenter, describe_segments


@dataclass
class Segmented:
    """What was done.

    Attributes:
        found: what is in each picture, in words, by its path.
        files: of the results, by the picture's path.
        problems: a message for each picture that could not be read, by its path.
    """

    found: dict[Path, str] = field(default_factory=dict)
    files: dict[Path, TiledFiles] = field(default_factory=dict)
    problems: dict[Path, str] = field(default_factory=dict)


def segment_pictures(
    segmenter: Callable[[], Segmenter],
    pictures: Sequence[Path],
    *,
    ids: Sequence[int],
    folder: Path,
    tile: int,
    overlap: int | None,
    read: Callable[[Path], np.ndarray],
    say: Callable[[str], None],
) -> Segmented:
    """Run a model over the tiles of pictures and write `TiledFiles` of each.

    Args:
        segmenter: gives the model, once tiles and folder are known to be good.
        pictures: files.
        ids: of the pictures in the JSON.
        folder: of the results, which is there; files in it are replaced.
        tile: pixels a side.
        overlap: pixels that neighbouring tiles share at least; None for an eighth of a tile.
        read: gives (H, W, 3) uint8 RGB of a picture that is no TIFF, or raises ValueError.
        say: told of each picture that cannot be read; the others are done.

    Raises:
        ValueError: tile and overlap do not fit each other, or a picture would be overwritten.
        OSError: something cannot be written.
    """
    overlap = tile // 8 if overlap is None else overlap
    Grid.of((tile, tile), (tile, tile), overlap)  # says now if they do not fit
    planned = {path: TiledFiles.of(folder, path.stem) for path in pictures}
    results = {file.resolve() for files in planned.values() for file in vars(files).values()}
    for path in pictures:
        if path.resolve() in results:
            raise ValueError(f"{path} would be overwritten by results: name another folder")
    model = segmenter()
    done = Segmented()
    for path, image_id in zip(pictures, ids):
        with tqdm(unit=" tiles", desc=path.name) as bar:

            def show(count: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(count - bar.n)

            try:
                with open_picture(path, read=read, rows=tile) as picture:
                    joined = segment_picture(
                        picture,
                        model,
                        planned[path],
                        tile=(tile, tile),
                        overlap=overlap,
                        file_name=path.name,
                        image_id=image_id,
                        progress=show,
                    )
            except ValueError as error:  # of reading
                text = " ".join(str(error).split())
                done.problems[path] = text if str(path) in text else f"{path}: {text}"
                bar.leave = False
        if path in done.problems:
            say(f"error: {done.problems[path]}")
            continue
        pixels = picture.size[0] * picture.size[1]
        done.found[path] = describe_segments(joined.classes, joined.areas, model.classes, pixels)
        done.files[path] = planned[path]
    return done
