"""What is written of the results: pictures, COCO's panoptic format and COCO results."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from knet_run.model import OUTPUTS, Model
from knet_run.rle import encode_rle

_ALPHA = 0.55


class Writer:
    """Files of all pictures in a folder; the JSON files are written by `close`.

    Instances under the score `threshold` are not drawn; instances.json has them. OSError if the
    folder cannot be made or written.
    """

    def __init__(self, folder: str, model: Model, threshold: float) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = self.folder / ".write_test"
        probe.touch()
        probe.unlink()
        self.model, self.threshold = model, threshold
        self._names: set[str] = set()
        # of panoptic.json and instances.json
        self._images: list[dict[str, Any]] = []
        self._panoptic: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []

    def add(
        self, path: Path, image: Image.Image, results: dict[str, np.ndarray], *, image_id: int
    ) -> None:
        """Write the files of one picture and keep its records."""
        names = itertools.chain([path.stem], (f"{path.stem}_{i}" for i in itertools.count(2)))
        name = next(name for name in names if name not in self._names)
        self._names.add(name)
        regions: list[tuple[np.ndarray, int]] = []
        if "semantic_classes" in results:
            labels = results["semantic_classes"]
            wide = max(self.model.classes) > 255
            _save(self.folder / f"{name}_semantic.png", labels.astype("u2" if wide else "u1"))
            regions = [(labels == c, c) for c in np.unique(labels)]
        if "instance_scores" in results:
            regions = self._add_instances(image_id, path.name, results)
        if "panoptic_ids" in results:
            regions = self._add_panoptic(name, image_id, results)
        colored = [(mask, self.model.classes[int(label)]["color"]) for mask, label in regions]
        _save(self.folder / f"{name}_overlay.png", overlay(np.asarray(image), colored))
        self._images.append(
            {"id": image_id, "file_name": path.name, "height": image.height, "width": image.width}
        )

    def close(self) -> None:
        """Write the JSON files of what was added."""
        if "panoptic" in self.model.info["results"]:
            categories = [
                {"id": c["dataset_id"], "name": c["name"], "isthing": int(c["isthing"]),
                 "color": c["color"]} for c in self.model.info["classes"]
            ]  # fmt: skip
            content = {"images": self._images, "annotations": self._panoptic,
                       "categories": categories}  # fmt: skip
            _write_json(self.folder / "panoptic.json", content)
        if "instance" in self.model.info["results"]:
            _write_json(self.folder / "instances.json", self._instances)

    def _add_instances(
        self, image_id: int, file_name: str, results: dict[str, np.ndarray]
    ) -> list[tuple[np.ndarray, int]]:
        regions = []
        for score, label, mask, (x0, y0, x1, y1) in _rows(results, "instance"):
            self._instances.append({
                "image_id": image_id, "file_name": file_name, "category_id": self._category(label),
                "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                "score": float(score), "segmentation": encode_rle(mask),
            })  # fmt: skip
            if score >= self.threshold:
                regions.append((mask, label))
        return regions[::-1]  # the best last, on top

    def _add_panoptic(
        self, name: str, image_id: int, results: dict[str, np.ndarray]
    ) -> list[tuple[np.ndarray, int]]:
        ids = results["panoptic_ids"]
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        _save(self.folder / f"{name}_panoptic.png", rgb)
        segments, regions = [], []
        for i, label, isthing, score, area in _rows(results, "panoptic"):
            regions.append((ids == i, label))
            segments.append({
                "id": int(i), "category_id": self._category(label), "isthing": bool(isthing),
                "score": float(score), "area": int(area), "bbox": _box(ids == i), "iscrowd": 0,
            })  # fmt: skip
        self._panoptic.append({"image_id": image_id, "file_name": f"{name}_panoptic.png",
                               "segments_info": segments})  # fmt: skip
        return regions

    def _category(self, label: int) -> int:
        return self.model.classes[int(label)]["dataset_id"]


def _rows(results: dict[str, np.ndarray], result: str) -> Iterator[Any]:
    """What the model says of each segment or instance, in the order of `OUTPUTS`."""
    names = [name for name in OUTPUTS[result] if name != "panoptic_ids"]
    return zip(*(results[name] for name in names))


def _box(mask: np.ndarray) -> list[int]:
    """x, y, width, height around a mask (H, W) that has a pixel."""
    columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def overlay(image: np.ndarray, regions: Sequence[tuple[np.ndarray, Sequence[int]]]) -> np.ndarray:
    """(H, W, 3) uint8 with masks (H, W) painted over in their colours, outlined in black."""
    out = image.astype(np.float32)
    for mask, color in regions:
        out[mask] = (1 - _ALPHA) * out[mask] + _ALPHA * np.asarray(color, dtype=np.float32)
    for mask, _ in regions:
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        out[mask & ~inner] = 0
    return out.round().astype(np.uint8)


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A path beside to write to; what is there at the end of the block becomes `path`."""
    unfinished = path.with_name(f"{path.stem}.unfinished-{os.getpid()}{path.suffix}")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _save(path: Path, pixels: np.ndarray) -> None:
    with _whole_file(path) as unfinished:
        Image.fromarray(pixels).save(unfinished)


def _write_json(path: Path, content: Any) -> None:
    with _whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")
