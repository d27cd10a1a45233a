"""Results as files: COCO panoptic PNGs and JSON, COCO results JSON, semantic label PNGs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from torch import Tensor

from knet.classes import Category
from knet.data.images import save_image
from knet.data.panoptic_png import write_panoptic_png
from knet.files import write_json
from knet.modeling.instances import mask_boxes

__all__ = ["ResultFiles", "image_ids"]

# what may be in a folder of results
_NAMES = ("images.json", "panoptic.json", "instances.json", "panoptic", "semantic")


def image_ids(files: Sequence[str | os.PathLike[str]]) -> list[int]:
    """An id for each image file: the number that is its name, as in COCO, where it is one.

    ``000000000139.jpg`` is image 139. Files with other names, and further ones with the same
    number, are counted on from the highest number; from 1 if no name is a number.
    """
    stems = [Path(file).stem for file in files]
    # isascii: digits of other scripts are decimal, too
    numbers = [int(stem) if stem.isascii() and stem.isdecimal() else None for stem in stems]
    following = itertools.count(max((n for n in numbers if n is not None), default=0) + 1)
    ids: dict[int, None] = {}  # in their order
    for number in numbers:
        ids[next(following) if number is None or number in ids else number] = None
    return list(ids)


class ResultFiles:
    """Writes results image by image; use it in a ``with`` block, whose end writes the JSON files.

    In the folder, as far as results hold them:

    ``images.json``
        ``images`` (id, file_name, height, width) and ``categories``, each with its ``label``.
    ``panoptic.json``, ``panoptic/NAME.png``
        COCO's panoptic format: a data set by itself; ids in the PNGs are R + 256 G + 65536 B,
        0 is void.
    ``instances.json``
        COCO's results format: a list of image_id, category_id, score, bbox and RLE.
    ``semantic/NAME.png``
        labels (not category ids), 8 bit, or 16 bit with more than 255 classes.

    Args:
        folder: made if missing; it must hold no results.
        categories: of the model.

    Raises:
        FileExistsError: the folder holds results: those of two runs would be read as one.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], *, categories: Sequence[Category]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        older = [name for name in _NAMES if (self.folder / name).exists()]
        if older:
            raise FileExistsError(
                f"{self.folder} holds results of an earlier run ({', '.join(older)}): remove "
                "them, or name another folder"
            )
        self._ids = {(c.is_thing, c.label): c.id for c in categories}
        self._categories = [
            {"id": c.id, "name": c.name, "isthing": int(c.is_thing), "label": c.label}
            for c in categories
        ]
        self._images: list[dict[str, Any]] = []
        # of the kinds of results that were seen
        self._records: dict[str, list[dict[str, Any]]] = {}

    def __enter__(self) -> ResultFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()  # after an error too: what was finished is kept

    def add(self, results: Mapping[str, Any], *, image_id: int, file_name: str) -> None:
        """Take the results of one image.

        Args:
            results: ``panoptic_seg``, ``instances`` and ``sem_seg`` of the model, any of them, at
                the image's size.
            image_id: of its records.
            file_name: of the picture; PNGs are named after it.

        Raises:
            ValueError: no result that can be written.
        """
        name = f"{Path(file_name).stem}.png"
        size: Sequence[int] | None = None
        records: dict[str, list[dict[str, Any]]] = {}
        # pictures first: an image has all of its records or, if one cannot be written, none
        if "panoptic_seg" in results:
            id_map = results["panoptic_seg"][0].cpu()
            size = id_map.shape
            write_panoptic_png(str(self._path("panoptic", name)), id_map.numpy())
            segments = self._segments(id_map, results["panoptic_seg"][1])
            records["panoptic"] = [
                {"image_id": image_id, "file_name": name, "segments_info": segments}
            ]
        if "sem_seg" in results:
            size = results["sem_seg"].shape[-2:]
            self._write_labels(results["sem_seg"], name)
        if "instances" in results:
            instances = results["instances"].to("cpu")
            size = instances.image_size
            records["instances"] = instances_to_coco_json(instances, image_id)
            for record in records["instances"]:
                record["category_id"] = self._ids[True, record["category_id"]]
        if size is None:
            raise ValueError(f"{file_name}: no result to write among {sorted(results)}")
        for kind, found in records.items():
            self._records.setdefault(kind, []).extend(found)
        self._images.append(
            {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}
        )

    def close(self) -> None:
        """Write the JSON files of all that was added."""
        common = {"images": self._images, "categories": self._categories}
        if self._images:
            write_json(self.folder / "images.json", common)
        if "panoptic" in self._records:
            content = {**common, "annotations": self._records["panoptic"]}
            write_json(self.folder / "panoptic.json", content)
        if "instances" in self._records:
            write_json(self.folder / "instances.json", self._records["instances"])

    def _segments(
        self, id_map: Tensor, segments: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """COCO's ``segments_info``."""
        boxes = [mask_boxes((id_map == s["id"])[None])[0].int().tolist() for s in segments]
        return [
            {
                "id": segment["id"],
                "category_id": self._ids[bool(segment["isthing"]), segment["category_id"]],
                "area": segment["area"],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "score": segment["score"],
            }
            for segment, (x0, y0, x1, y1) in zip(segments, boxes)
        ]

    def _write_labels(self, scores: Tensor, name: str) -> None:
        labels = scores.argmax(dim=0).cpu().numpy()
        dtype = np.uint8 if len(scores) < 256 else np.uint16  # 255 stands for no label
        save_image(self._path("semantic", name), labels.astype(dtype))

    def _path(self, kind: str, name: str) -> Path:
        (self.folder / kind).mkdir(exist_ok=True)
        return self.folder / kind / name
