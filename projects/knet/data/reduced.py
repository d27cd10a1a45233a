"""Large pictures at the size of the training, with their labels, kept on disk.

Decoding a photograph of a megapixel and its masks takes longer than a step waits for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from knet.data.augmentation import Labels, largest_train_sides, transform_labels, transform_masks
from knet.data.tar_shards import file_of
from knet.files import whole_file

_FACTOR = 1.5  # of both sides: less would save little
_FILES = ("file_name", "pan_seg_file_name", "sem_seg_file_name")
_VERSION = 2  # of the files' content

Record = dict[str, Any]
Sample = tuple[np.ndarray, Labels, tuple[int, int]]  # picture, labels, (H, W) of the file


class ReducedPictures:
    """Reads pictures and labels through a folder of reduced ones.

    A picture is reduced as `ResizeShortestEdge` does it, masks and maps by nearest neighbour. A
    file of the folder counts as long as the record, and time and size of its files, are the same.

    Args:
        folder: made if it is missing.
        shortest, longest: sides of a picture, as of `ResizeShortestEdge`.
        settings: what else the content depends on.
    """

    def __init__(
        self, folder: str | os.PathLike[str], shortest: int, longest: int, *, settings: str = ""
    ) -> None:
        self.folder = Path(folder)
        self.shortest, self.longest = shortest, longest
        self.settings = settings

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ReducedPictures | None:
        """By INPUT.REDUCED_FOLDER, None without one; the largest size that training asks for."""
        inputs = cfg.INPUT
        if not inputs.REDUCED_FOLDER:
            return None
        settings = f"{inputs.FORMAT} {inputs.KNET_TARGETS}"
        return cls(inputs.REDUCED_FOLDER, *largest_train_sides(cfg), settings=settings)

    def read(self, record: Record, read_files: Callable[[Record], Sample]) -> Sample:
        """A record's sample, at a smaller size if it is large.

        Args:
            record: in Detectron2's format.
            read_files: reads the sample at its own size.

        Raises:
            OSError: the folder cannot be written.
            ValueError: a file in it is damaged.
            whatever `read_files` raises.
        """
        try:
            path = self.folder / f"{self._key(record)}.npz"
        except OSError:  # which `read_files` tells in words
            return read_files(record)
        if path.is_file():
            return _load(path)
        image, labels, size = read_files(record)
        new = T.ResizeShortestEdge.get_output_shape(*size, self.shortest, self.longest)
        if min(size[0] / new[0], size[1] / new[1]) < _FACTOR:
            return image, labels, size
        image, labels = _reduce(image, labels, T.ResizeTransform(*size, *new))
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as unfinished:
            np.savez(unfinished, **_pack(image, labels, size))  # type: ignore[arg-type]
        return image, labels, size

    def _key(self, record: Record) -> str:
        files = [os.stat(file_of(record[key])) for key in _FILES if key in record]
        states = [(state.st_size, state.st_mtime_ns) for state in files]
        settings = (_VERSION, self.shortest, self.longest, self.settings)
        text = json.dumps((settings, states, record), sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    """What JSON cannot hold of a record: RLE's bytes, arrays."""
    return value.decode("latin-1") if isinstance(value, bytes) else np.asarray(value).tolist()


def _reduce(image: np.ndarray, labels: Labels, resize: T.Transform) -> tuple[np.ndarray, Labels]:
    small = resize.apply_image(image)
    moves = T.TransformList([resize])
    masks = labels.masks
    if masks is not None:
        reduced = transform_masks(moves, masks, small.shape[:2])
        masks = [mask_util.encode(np.asfortranarray(mask, np.uint8)) for mask in reduced]
    rows, sem_seg = (
        None if labels_map is None else transform_labels(moves, labels_map)
        for labels_map in (labels.rows, labels.sem_seg)
    )
    return small, Labels(labels.classes, masks, rows, sem_seg)


def _pack(image: np.ndarray, labels: Labels, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arrays of numbers, which are read without running code."""
    arrays: dict[str, np.ndarray] = {"image": image, "size": np.array(size)}
    for name in ("classes", "rows", "sem_seg"):
        value = getattr(labels, name)
        if value is not None:
            arrays[name] = value
    if labels.masks is not None:
        counts = [mask["counts"] for mask in labels.masks]
        arrays["counts"] = np.frombuffer(b"".join(counts), np.uint8)
        arrays["lengths"] = np.array([len(part) for part in counts], np.int64)
    return arrays


def _load(path: Path) -> Sample:
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays: Mapping[str, np.ndarray] = {name: saved[name] for name in saved.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: damaged ({error}); remove the folder, INPUT.REDUCED_FOLDER: it is made anew"
        ) from error
    image, size = arrays["image"], arrays["size"]
    masks = None
    if "counts" in arrays:
        ends = np.cumsum(arrays["lengths"])
        data, shape = arrays["counts"].tobytes(), list(image.shape[:2])
        starts = ends - arrays["lengths"]
        masks = [{"size": shape, "counts": data[a:b]} for a, b in zip(starts, ends)]
    labels = Labels(arrays.get("classes"), masks, arrays.get("rows"), arrays.get("sem_seg"))
    return image, labels, (int(size[0]), int(size[1]))
