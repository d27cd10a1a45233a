"""Results that were written as files (see :class:`knet.results.coco_files.ResultFiles`)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from knet.classes import Category
from knet.data.coco_file import is_box, is_count, is_id, is_number
from knet.data.defects import raise_first
from knet.data.images import BROKEN_FILE, MAX_PIXELS, open_image
from knet.data.masks import segmentation_errors
from knet.data.panoptic_png import read_panoptic_png
from knet.files import read_text


class FilePredictions:
    """A folder of results, image by image in the form that Detectron2's models give.

    Args:
        folder: with ``images.json`` and ``panoptic.json``, ``instances.json`` or ``semantic/``.
        categories: of the data set; those of the files must be the same.

    Attributes:
        tasks: which of ``panoptic``, ``instance`` and ``semantic`` the folder has.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing in it.
        ValueError: naming the file and what is wrong with it.
    """

    def __init__(self, folder: str | os.PathLike[str], *, categories: Sequence[Category]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"--predictions {folder}: there is no such folder")
        self._num_labels = max(category.label for category in categories) + 1
        self._labels = {(c.id, c.is_thing): c.label for c in categories}
        self._images = self._read_images(categories)
        self.tasks: list[str] = []
        self._panoptic: dict[Any, dict[str, Any]] = {}
        self._instances: dict[Any, list[dict[str, Any]]] = {}
        if (self.folder / "panoptic.json").exists():
            self.tasks.append("panoptic")
            for record in self._read("panoptic.json", "annotations"):
                self._panoptic[self._image_id(record, "panoptic.json")] = record
        if (self.folder / "instances.json").exists():
            self.tasks.append("instance")
            for record in self._read("instances.json"):
                image_id = self._image_id(record, "instances.json")
                self._instances.setdefault(image_id, []).append(record)
            unknown = self._instances.keys() - {image["id"] for image in self._images.values()}
            if unknown:
                raise ValueError(
                    f"{self.folder / 'instances.json'} has instances of images that images.json "
                    f"does not know: {', '.join(sorted(map(str, unknown))[:5])}"
                )
        if (self.folder / "semantic").is_dir():
            self.tasks.append("semantic")
        if not self.tasks:
            raise FileNotFoundError(
                f"--predictions {folder}: no panoptic.json, instances.json or semantic/ in it"
            )

    def missing(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """The names of the data set's pictures that the folder has no results of."""
        names = [Path(record["file_name"]) for record in records]
        return [name.name for name in names if name.stem not in self._images]

    def output_of(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What a model would have given for a record.

        Returns:
            ``panoptic_seg``, ``instances`` and ``sem_seg`` (one 1 among 0s a pixel), as far as
            the folder has them.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        stem = Path(record["file_name"]).stem
        image = self._images[stem]
        size = (image["height"], image["width"])
        try:
            output: dict[str, Any] = {}
            if "panoptic" in self.tasks:
                output["panoptic_seg"] = self._panoptic_seg(self._panoptic[image["id"]], size)
            if "instance" in self.tasks:
                output["instances"] = self._instances_of(image["id"], size)
            if "semantic" in self.tasks:
                output["sem_seg"] = self._sem_seg(stem, size)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self.folder}: the results of '{stem}' are not in the form of knet predict "
                f"--results: {type(error).__name__} {error}"
            ) from error
        return output

    def _panoptic_seg(
        self, record: Mapping[str, Any], size: tuple[int, int]
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        path = self.folder / "panoptic" / record["file_name"]
        ids = read_panoptic_png(str(path), size=size).astype(np.int32)
        _require_size(path, ids.shape, size)
        segments = []
        for info in record["segments_info"]:
            is_thing = (info["category_id"], True) in self._labels
            label = self._labels[info["category_id"], is_thing]
            segment = {"id": info["id"], "category_id": label, "isthing": is_thing}
            segments.append({**segment, "score": info.get("score"), "area": info.get("area")})
        listed = Counter(segment["id"] for segment in segments)
        there = Counter(set(np.unique(ids).tolist()) - {0})
        if listed != there:
            odd = min((listed - there) + (there - listed), key=str)
            raise ValueError(
                f"{path}: the segment {odd} is in it {there[odd]} times, in panoptic.json beside "
                f"it {listed[odd]} times; write the results anew"
            )
        return torch.as_tensor(ids), segments

    def _instances_of(self, image_id: Any, size: tuple[int, int]) -> Instances:
        found = self._instances.get(image_id, [])
        path = str(self.folder / "instances.json")
        for k, one in enumerate(found):
            where = f"image {image_id}, instance {k + 1} of {len(found)}"
            raise_first(segmentation_errors(one["segmentation"], size, path, where))
            if not is_box(one["bbox"]) or not is_number(one["score"]):
                raise ValueError(
                    f"{path}: {where}: bbox must be four numbers, score a number; they are "
                    f"{one['bbox']!r:.60} and {one['score']!r:.60}"
                )
        masks = [mask_util.decode(one["segmentation"]).astype(bool) for one in found]
        boxes = torch.tensor([one["bbox"] for one in found], dtype=torch.float32).reshape(-1, 4)
        labels = [self._labels[one["category_id"], True] for one in found]
        return Instances(
            size,
            pred_masks=torch.as_tensor(np.array(masks).reshape(-1, *size)),
            pred_boxes=Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)),
            scores=torch.tensor([float(one["score"]) for one in found]),
            pred_classes=torch.tensor(labels, dtype=torch.long),
        )

    def _sem_seg(self, stem: str, size: tuple[int, int]) -> torch.Tensor:
        path = self.folder / "semantic" / f"{stem}.png"
        try:
            with open_image(path, max_pixels=max(MAX_PIXELS, size[0] * size[1])) as opened:
                labels = torch.as_tensor(np.array(opened).astype(np.int64))
        except BROKEN_FILE as error:
            raise ValueError(f"{path} cannot be read as a label map: {error}") from error
        if labels.ndim != 2 or int(labels.max()) >= self._num_labels:
            raise ValueError(
                f"{path} is no map of the labels 0 to {self._num_labels - 1}: are these the "
                "predictions of another model?"
            )
        _require_size(path, tuple(labels.shape), size)
        one_hot = torch.zeros(self._num_labels, *labels.shape, dtype=torch.uint8)
        return one_hot.scatter_(0, labels[None], 1)

    def _read_images(self, categories: Sequence[Category]) -> dict[str, dict[str, Any]]:
        """Entries of images.json by the stems of their file names, if its classes are ours."""
        path = self.folder / "images.json"
        theirs = {
            repr((c.get("id"), c.get("name"), c.get("label"))): str(c.get("name"))
            for c in self._read("images.json", "categories")
        }
        ours = {repr((c.id, c.name, c.label)): c.name for c in categories}
        if theirs.keys() != ours.keys():
            other = sorted({**theirs, **ours}[key] for key in theirs.keys() ^ ours.keys())
            raise ValueError(
                f"{path} has other classes than the data set: "
                f"{', '.join(other[:5])}{' …' if len(other) > 5 else ''}"
            )
        images: dict[str, dict[str, Any]] = {}
        for image in self._read("images.json", "images"):
            stem = Path(str(image.get("file_name"))).stem
            if stem in images:
                raise ValueError(f"{path}: '{stem}' is there twice")
            for key, fits in (("id", is_id), ("height", is_count), ("width", is_count)):
                if not fits(image.get(key)):
                    raise ValueError(
                        f"{path}: the image '{stem}' has no {key} that is a whole number"
                    )
            images[stem] = image
        return images

    def _read(self, name: str, key: str = "") -> list[dict[str, Any]]:
        """The records of a JSON file: under a key, or all of it."""
        path = self.folder / name
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no regular file")  # a named pipe would never end
        try:
            content = json.loads(read_text(path))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"--predictions {self.folder}: no {name} in it; knet predict --results writes "
                "such folders"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as JSON: {error}") from error
        if key:
            content = content.get(key) if isinstance(content, dict) else None
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ValueError(f"{path} has no list of {key or 'records'}")
        return content

    def _image_id(self, record: Mapping[str, Any], name: str) -> Any:
        image_id = record.get("image_id")
        if not is_id(image_id, text=True):
            raise ValueError(
                f"{self.folder / name}: image_id {image_id!r:.60} is no whole number or text"
            )
        return image_id


def _require_size(path: Path, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    if shape != size:
        raise ValueError(
            f"{path} has {shape[0]} x {shape[1]} pixels, its image in images.json {size[0]} x "
            f"{size[1]} (height x width): write the results anew"
        )
