"""Writes the bundled toy data set *shapes* in COCO panoptic format.

A split is one folder, all of it drawn from a seed::

    <root>/<split>/images/000001.png     pictures
                   panoptic/000001.png   panoptic label maps
                   panoptic.json         COCO panoptic annotations
                   instances.json        COCO instances, derived from the panoptic labels
                   semantic/000001.png   uint8 labels: things 0-3, stuff 4-7
                   meta.json             the parameters and their hash
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from knet.data.derive import panoptic_to_instances, panoptic_to_semantic
from knet.data.panoptic_png import write_panoptic_png
from knet.data.shapes.drawing import THING_NAMES
from knet.data.shapes.scene import Scene, draw_scene
from knet.files import whole_folder, write_json

logger = logging.getLogger(__name__)

# Part of the hash: raise it whenever the drawing or the format changes.
_VERSION = 4


# Ids have gaps and mix things with stuff, as COCO's do, so that no code can take them for indices.
SHAPES_CATEGORIES: tuple[dict[str, Any], ...] = tuple(
    {
        "id": number,
        "name": name,
        "isthing": isthing,
        "color": color,
        "supercategory": "shape" if isthing else "pattern",
    }
    for number, name, isthing, color in (
        (2, "plain", 0, [190, 186, 176]),
        (3, "disc", 1, [214, 69, 65]),
        (5, "square", 1, [244, 179, 80]),
        (6, "stripes", 0, [103, 128, 159]),
        (8, "triangle", 1, [52, 120, 219]),
        (9, "checks", 0, [135, 150, 98]),
        (13, "star", 1, [148, 82, 190]),
        (14, "dots", 0, [94, 148, 141]),
    )
)


def write_shapes(
    root: str | os.PathLike[str],
    *,
    split: str = "train",
    num_scenes: int,
    seed: int,
    size: int = 96,
    things: Sequence[str] = THING_NAMES,
) -> Path:
    """Draws a split and writes it to ``<root>/<split>``, unless it is there already.

    The folder appears complete or not at all; several processes may call this at once. A folder
    that an earlier call wrote with other parameters is replaced.

    Args:
        root: folder of the data set; made if missing.
        split: name of the split; splits of one seed share no scene.
        num_scenes: how many scenes, at least 1.
        seed: 0 or more.
        size: side of a picture in pixels, at least 48.
        things: which of the thing classes the scenes and the categories have.

    Returns:
        The folder of the split.

    Raises:
        ValueError: for parameters out of range.
        FileExistsError: if the folder is there and was not written by this function.
    """
    if num_scenes < 1 or not split or Path(split).name != split:
        raise ValueError(
            f"need num_scenes >= 1 and a plain split name; got {num_scenes}, {split!r}"
        )
    parameters: dict[str, Any] = {"version": _VERSION, "split": split, "num_scenes": num_scenes}
    parameters.update(seed=seed, size=size)
    if tuple(things) != THING_NAMES:
        parameters["things"] = list(things)
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    folder = Path(root) / split
    if _is_written(folder, digest):
        return folder
    try:
        with whole_folder(folder) as fresh:
            _write_split(
                fresh, split=split, num_scenes=num_scenes, seed=seed, size=size, things=things
            )
            write_json(fresh / "meta.json", {"sha256": digest, **parameters}, indent=2)
    except OSError:
        if not _is_written(folder, digest):  # by another process, which was first
            raise
    return folder


def is_current(folder: str | os.PathLike[str]) -> bool:
    """Whether this version of the generator wrote a split there, with whatever parameters."""
    try:
        meta = json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))
        return bool(meta["version"] == _VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # `write_shapes` then says what is there


def _is_written(folder: Path, digest: str) -> bool:
    if not folder.exists():
        return False
    meta = folder / "meta.json"
    try:
        return bool(json.loads(meta.read_text(encoding="utf-8"))["sha256"] == digest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"{folder} exists, but was not written by write_shapes (no valid {meta.name}); "
            f"choose another folder or remove it"
        ) from error


def _write_split(
    folder: Path, *, split: str, num_scenes: int, seed: int, size: int, things: Sequence[str]
) -> None:
    categories = [c for c in SHAPES_CATEGORIES if not c["isthing"] or c["name"] in things]
    for name in ("images", "panoptic", "semantic"):
        (folder / name).mkdir()
    started = reported = time.monotonic()
    images, annotations = [], []
    for index in range(num_scenes):
        scene = draw_scene(seed, index, split=split, size=size, things=things)
        file_name = f"{index + 1:06d}.png"
        Image.fromarray(scene.image).save(folder / "images" / file_name, compress_level=3)
        image = {"id": index + 1, "file_name": file_name, "height": size, "width": size}
        images.append(image)
        ids, segments = _segments(scene)
        write_panoptic_png(str(folder / "panoptic" / file_name), ids)
        annotations.append(
            {"image_id": image["id"], "file_name": file_name, "segments_info": segments}
        )
        if time.monotonic() - reported > 5:
            reported = time.monotonic()
            logger.info("shapes %s: %d of %d scenes", split, index + 1, num_scenes)
    content = {
        "info": {"description": f"shapes, a toy data set drawn by K-Net; {split}, seed {seed}"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    panoptic_json = folder / "panoptic.json"
    write_json(panoptic_json, content)
    panoptic_root = str(folder / "panoptic")
    panoptic_to_instances(str(panoptic_json), panoptic_root, str(folder / "instances.json"))
    ordered = sorted(categories, key=lambda c: (not c["isthing"], c["id"]))
    panoptic_to_semantic(
        str(panoptic_json),
        panoptic_root,
        str(folder / "semantic"),
        class_ids={category["id"]: label for label, category in enumerate(ordered)},
    )
    logger.info("shapes %s: %d scenes in %.0f s", split, num_scenes, time.monotonic() - started)


def _segments(scene: Scene) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segment ids (H, W) uint32 and ``segments_info`` of a scene."""
    categories = {category["name"]: category for category in SHAPES_CATEGORIES}
    segments: list[dict[str, Any]] = []
    for row, name in enumerate(scene.names):
        category = categories[name]
        pixels = np.argwhere(scene.segments == row)[:, ::-1]  # x, y
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        # As in COCO, the code is the class colour, varied, so that the PNG is good to look at.
        red, green, blue = (min(255, max(1, v + 7 * (row - 4))) for v in category["color"])
        segments.append(
            {
                "id": red + 256 * green + 65536 * blue,
                "category_id": category["id"],
                "iscrowd": 0,
                "area": len(pixels),
                "bbox": [*low.tolist(), *(high - low + 1).tolist()],
            }
        )
    ids = np.array([segment["id"] for segment in segments], np.uint32)
    return ids[scene.segments], segments
