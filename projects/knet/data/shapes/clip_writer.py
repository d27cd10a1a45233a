"""Writes clips of *shapes* as videos, each with its truth.

A split is one folder::

    <root>/<split>/0001.avi               the clip, without loss
                   0001/panoptic/*.png    its truth, a PNG a frame, as `knet predict --video` writes
                        panoptic.json     results: an object has the same id in all frames
                        tracks.json       the objects with their masks, in YouTube-VIS' format
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from knet.classes import Category
from knet.data.shapes.clip import Clip, draw_clip
from knet.data.shapes.writer import SHAPES_CATEGORIES
from knet.files import whole_folder
from knet.predict.video import VideoWriter
from knet.tracking.track_file import FollowedFiles

__all__ = ["SHAPES_CLASSES", "write_clips"]

_LOSSLESS = ("FFV1",)

# things first, each kind by its id, as models have them
SHAPES_CLASSES = tuple(
    Category(label, int(record["id"]), str(record["name"]), bool(thing))
    for thing in (1, 0)
    for label, record in enumerate(r for r in SHAPES_CATEGORIES if r["isthing"] == thing)
)


def write_clips(
    root: str | os.PathLike[str],
    *,
    num_clips: int,
    seed: int,
    split: str = "clips",
    num_frames: int = 48,
    size: int = 96,
    frames_a_second: float = 12.0,
) -> Path:
    """Draws a split and writes it to ``<root>/<split>``, complete or not at all.

    Args:
        root: made if missing.
        num_clips: at least 1.
        seed, split, num_frames, size: of `draw_clip`.
        frames_a_second: of the videos.

    Returns:
        The folder of the split.

    Raises:
        ValueError: for parameters out of range.
        FileExistsError: the folder is there.
    """
    folder = Path(root) / split
    if num_clips < 1 or not split or Path(split).name != split:
        raise ValueError(f"need num_clips >= 1 and a plain split name; got {num_clips}, {split!r}")
    if folder.exists():
        raise FileExistsError(f"{folder} is there: remove it, or choose another folder")
    with whole_folder(folder) as fresh:
        for index in tqdm(range(num_clips), unit="clip", disable=None):
            clip = draw_clip(seed, index, num_frames=num_frames, split=split, size=size)
            name = f"{index + 1:04d}"
            file = fresh / f"{name}.avi"
            with VideoWriter(file, frames_a_second=frames_a_second, codecs=_LOSSLESS) as video:
                for image in clip.images:
                    video.add(image)
            _write_truth(fresh / name, clip, SHAPES_CLASSES)
    return folder


def _write_truth(folder: Path, clip: Clip, categories: Sequence[Category]) -> None:
    classes = {category.name: category for category in categories}
    with FollowedFiles(folder, categories=categories, video=folder.name) as files:
        for number, rows in enumerate(clip.segments, start=1):
            id_map = torch.from_numpy(rows.astype("int32") + 1)  # 0 would be void
            areas = torch.bincount(id_map.flatten(), minlength=len(clip.names) + 1).tolist()
            segments = [
                {
                    "id": row,
                    "isthing": classes[name].is_thing,
                    "category_id": classes[name].label,
                    "score": 1.0,
                    "area": areas[row],
                }
                for row, name in enumerate(clip.names, start=1)
                if areas[row]
            ]
            file_name = f"{folder.name}_{number:06d}.png"
            results = {"panoptic_seg": (id_map, segments)}
            files.add(results, image_id=number, file_name=file_name)
