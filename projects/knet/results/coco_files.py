"""Results as files: COCO panoptic PNGs and JSON, COCO results JSON, semantic label PNGs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from knet.classes import Category, category_records
from knet.evaluation.spool import Spool, join_spools
from knet.files import write_bytes
from knet.results.encode import EncodedResults, ResultEncoder

__all__ = ["ResultFiles", "ids_of_numbers", "image_ids", "number_of"]

# what may be in a folder of results
_NAMES = ("images.json", "panoptic.json", "instances.json", "tracks.json", "panoptic", "semantic")


def image_ids(files: Sequence[str | os.PathLike[str]]) -> list[int]:
    """An id for each image file: the number that is its name, as in COCO, where it is one.

    ``000000000139.jpg`` is image 139. Files with other names, and further ones with the same
    number, are counted on from the highest number; from 1 if no name is a number.
    """
    return ids_of_numbers(np.array([number_of(file) for file in files], np.int64)).tolist()


def number_of(file: str | os.PathLike[str]) -> int:
    """The number that a file is named by; -1 if its name is none, or one of over 18 digits."""
    stem = Path(file).stem
    # isascii: digits of other scripts are decimal, too
    return int(stem) if stem.isascii() and stem.isdecimal() and len(stem) <= 18 else -1


def ids_of_numbers(numbers: np.ndarray) -> np.ndarray:
    """The ids of `image_ids`, (N,) int64, of files with these numbers; -1 where there is none."""
    _, first = np.unique(numbers, return_index=True)
    named = np.zeros(len(numbers), bool)
    named[first] = True
    named &= numbers >= 0
    start = max(0, int(numbers.max(initial=0)))
    return np.where(named, numbers, start + np.cumsum(~named))


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
        durable: whether each PNG is on the disk, whole, before the next one. Not in a folder that
            is to be there whole or not at all.

    Raises:
        FileExistsError: the folder holds results: those of two runs would be read as one.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        categories: Sequence[Category],
        durable: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self._write = write_bytes if durable else Path.write_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        older = [name for name in _NAMES if (self.folder / name).exists()]
        if older:
            raise FileExistsError(
                f"{self.folder} holds results of an earlier run ({', '.join(older)}): remove "
                "them, or name another folder"
            )
        self._encode = ResultEncoder(categories)
        self._categories = json.dumps(category_records(categories))
        # on disk: of millions of images there are gigabytes
        self._images = Spool(self.folder)
        self._count = 0
        # of the kinds of results that were seen
        self._records: dict[str, Spool] = {}

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
        self.add_encoded(self._encode(results, file_name), image_id=image_id, file_name=file_name)

    def add_encoded(self, found: EncodedResults, *, image_id: int, file_name: str) -> None:
        """The same with results that are encoded.

        Raises:
            ValueError: the PNGs of an earlier image have this name.
        """
        name = f"{Path(file_name).stem}.png"
        # pictures first: an image has all of its records or, if one cannot be written, none
        for kind, png in (("panoptic", found.panoptic_png), ("semantic", found.label_png)):
            if png is not None:
                (self.folder / kind).mkdir(exist_ok=True)
                if (self.folder / kind / name).exists():
                    raise ValueError(f"{file_name}: another picture has the same {kind}/{name}")
                self._write(self.folder / kind / name, png)
        if found.segments is not None:
            record = {"image_id": image_id, "file_name": name, "segments_info": found.segments}
            self._spool("panoptic").add(json.dumps(record))
        if found.instances is not None:
            spool = self._spool("instances")
            for instance in found.instances:
                spool.add(json.dumps({"image_id": image_id, **instance}))
        height, width = found.size
        image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        self._images.add(json.dumps(image))
        self._count += 1

    def close(self) -> None:
        """Write the JSON files of all that was added."""
        common: list[str | Spool] = [
            '{"images": [',
            self._images,
            f'], "categories": {self._categories}',
        ]
        if self._count:
            join_spools(self.folder / "images.json", *common, "}\n")
        if "panoptic" in self._records:
            parts = [*common, ', "annotations": [', self._records["panoptic"], "]}\n"]
            join_spools(self.folder / "panoptic.json", *parts)
        if "instances" in self._records:
            self._records["instances"].write(self.folder / "instances.json", after="]\n")

    def _spool(self, kind: str) -> Spool:
        if kind not in self._records:
            self._records[kind] = Spool(self.folder)
        return self._records[kind]
