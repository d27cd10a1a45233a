"""A small good data set of each format, written to a folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

HEIGHT, WIDTH = 40, 60
NUM_IMAGES = 3  # a, b and c, each with objects
CLASSES = ["background", "leaf", "stem"]
FORMATS = ("coco_instances", "coco_panoptic", "semantic")
_STEMS = "abc"


class Files:
    """A data set while it is being made."""

    def __init__(self, form: str, root: Path) -> None:
        self.form, self.root = form, root
        self.content: dict[str, Any] = {}
        self.text: str | None = None  # instead of the content

    def picture(self, stem: str = "a") -> Path:
        return self.root / "images" / f"{stem}.png"

    def labels(self, stem: str = "a") -> Path:
        return self.root / "labels" / f"{stem}.png"

    def image(self, index: int = 0) -> dict[str, Any]:
        return self.content["images"][index]

    def annotation(self, index: int = 0) -> dict[str, Any]:
        return self.content["annotations"][index]

    def polygon(self, *points: float) -> None:
        self.annotation()["segmentation"] = [list(points)]


def make_good(form: str, folder: Path) -> dict[str, Any]:
    """Writes a data set without a defect; its entry for ``DATASETS.CUSTOM``."""
    return finish(start(form, folder), f"good_{form}")


def finish(files: Files, name: str) -> dict[str, Any]:
    """Writes the annotations; the entry of the data set."""
    root = files.root
    entry = {"NAME": name, "FORMAT": files.form, "IMAGE_ROOT": str(root / "images")}
    if files.form == "semantic":
        return {**entry, "SEM_SEG_ROOT": str(root / "labels"), "CLASSES": CLASSES}
    path = root / "annotations.json"
    path.write_text(json.dumps(files.content) if files.text is None else files.text)
    if files.form == "coco_instances":
        return {**entry, "JSON_FILE": str(path)}
    return {**entry, "PANOPTIC_JSON": str(path), "PANOPTIC_ROOT": str(root / "labels")}


def start(form: str, root: Path) -> Files:
    """Writes all but the annotation file, which can still be changed."""
    files = Files(form, root)
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem in _STEMS:
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(files.picture(stem))
    images = [
        {"id": 5 + i, "file_name": f"{stem}.png", "height": HEIGHT, "width": WIDTH}
        for i, stem in enumerate(_STEMS)
    ]
    # Neither contiguous nor sorted.
    categories = [{"id": 7, "name": "leaf", "isthing": 1}, {"id": 3, "name": "stem", "isthing": 1}]
    if form != "coco_instances":
        (root / "labels").mkdir()
    if form == "coco_instances":
        files.content = {"images": images, "categories": categories, "annotations": _objects()}
    elif form == "coco_panoptic":
        categories.append({"id": 1, "name": "soil", "isthing": 0})
        files.content = {"images": images, "categories": categories, "annotations": []}
        for image in images:
            write_ids(files.labels(image["file_name"][0]), segment_ids())
            segments = [
                {"id": 1, "category_id": 1, "area": HEIGHT * WIDTH - 300 - 80},
                {"id": 70000, "category_id": 3 if image["id"] == 7 else 7, "area": 300},
            ]
            record = {"image_id": image["id"], "file_name": image["file_name"]}
            files.content["annotations"].append({**record, "segments_info": segments})
    else:
        for stem in _STEMS:
            Image.fromarray(label_map()).save(files.labels(stem))
    return files


def _objects() -> list[dict[str, Any]]:
    """Polygons, RLE and a crowd over images 5 to 7."""
    square = {"iscrowd": 0, "area": 100, "bbox": [10, 10, 10, 10], "category_id": 3}
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:20, 10:20] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    compressed = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    column = [10, HEIGHT - 10]
    counts = [10 * HEIGHT + 10, *(column * 10)[:-1], HEIGHT * WIDTH - 19 * HEIGHT - 20]
    plain = {"size": [HEIGHT, WIDTH], "counts": counts}
    outline = [[10, 10, 20, 10, 20, 20, 10, 20]]
    objects = [
        {**square, "id": 11, "image_id": 5, "segmentation": outline},
        {**square, "id": 12, "image_id": 5, "segmentation": compressed, "category_id": 7},
        {**square, "id": 13, "image_id": 6, "segmentation": plain},
        {**square, "id": 14, "image_id": 6, "segmentation": compressed, "iscrowd": 1},
        {**square, "id": 15, "image_id": 7, "segmentation": outline, "category_id": 7},
    ]
    # One by one: a change of one mask must not be one of the others.
    return [copy.deepcopy(item) for item in objects]


def segment_ids() -> np.ndarray:
    ids = np.ones((HEIGHT, WIDTH), np.uint32)
    ids[10:20, 10:40] = 70000
    ids[:4, :20] = 0
    return ids


def label_map() -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[10:20, 10:40] = 1
    labels[30:, :9] = 2
    labels[:4] = 255
    return labels


def write_ids(path: Path, ids: np.ndarray) -> None:
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1)
    Image.fromarray(rgb.astype(np.uint8)).save(path)
