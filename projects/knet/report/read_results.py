"""Results that were written as files (see :class:`knet.results.coco_files.ResultFiles`)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from knet.classes import Category, require_classes
from knet.data.coco_file import is_count, is_id
from knet.data.images import BROKEN_FILE, MAX_PIXELS, open_image
from knet.data.panoptic_png import read_panoptic_png
from knet.files import read_text
from knet.results.decode import ResultDecoder


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
        self._decode = ResultDecoder(categories)
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
        return self._decode.panoptic_seg(ids, record["segments_info"], str(path))

    def _instances_of(self, image_id: Any, size: tuple[int, int]) -> Instances:
        found = self._instances.get(image_id, [])
        path = str(self.folder / "instances.json")
        return self._decode.instances(found, size, path, f"image {image_id}")

    def _sem_seg(self, stem: str, size: tuple[int, int]) -> torch.Tensor:
        path = self.folder / "semantic" / f"{stem}.png"
        try:
            with open_image(path, max_pixels=max(MAX_PIXELS, size[0] * size[1])) as opened:
                labels = np.array(opened)
        except BROKEN_FILE as error:
            raise ValueError(f"{path} cannot be read as a label map: {error}") from error
        _require_size(path, labels.shape[:2], size)
        return self._decode.sem_seg(labels, str(path))

    def _read_images(self, categories: Sequence[Category]) -> dict[str, dict[str, Any]]:
        """Entries of images.json by the stems of their file names, if its classes are ours."""
        path = self.folder / "images.json"
        require_classes(path, self._read("images.json", "categories"), categories)
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
