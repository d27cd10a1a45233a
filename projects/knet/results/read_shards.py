"""Results that were written as Parquet shards (see `knet.results.parquet`)."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from knet.classes import Category, require_classes
from knet.data.images import BROKEN_FILE
from knet.data.records import Selection
from knet.results.decode import ResultDecoder
from knet.results.parquet import decode_row, find_shards, pa, pq, read_about

__all__ = ["ShardPredictions"]


class ShardPredictions:
    """A folder of shards, image by image in the form that Detectron2's models give.

    In memory are the places of the images that are asked for, and one row group. Images are known
    by the names of their files without suffix; if files of several folders have the same, by as
    many folders as tell the data set's images apart.

    Args:
        folder: with shards.
        categories: of the data set; those of the shards must be the same.

    Attributes:
        tasks: which of ``panoptic``, ``instance`` and ``semantic`` the shards have.

    Raises:
        FileNotFoundError: there is no shard.
        ValueError: naming the file and what is wrong with it.
    """

    def __init__(self, folder: str | os.PathLike[str], *, categories: Sequence[Category]) -> None:
        self._shards = find_shards(Path(folder))
        if not self._shards:
            raise FileNotFoundError(
                f"{folder}: no results in it; knet predict --input writes them to its --output"
            )
        for shard in self._shards:
            about = read_about(shard)
            require_classes(shard, about["categories"], categories)
            if about["tasks"] != read_about(self._shards[0])["tasks"]:
                raise ValueError(f"{shard} has other results than {self._shards[0]}")
        self.tasks: list[str] = about["tasks"]
        self._decode = ResultDecoder(categories)
        # name → shard, row group and row
        self._places: dict[str, tuple[int, int, int]] = {}
        self._parts = 1  # of a path that make a name
        self._group: tuple[tuple[int, int], list[dict[str, Any]]] | None = None

    def missing(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """Find the pictures of records; returns the names of those without results, and why.

        Raises:
            ValueError: two rows have the name of one picture, or two records have one picture.
        """
        paths = [record["file_name"] for record in records]
        self._parts = _parts_of_names(paths)
        names = {_name(path, self._parts): Path(path).name for path in paths}
        errors: dict[str, str] = {}
        for number, shard in enumerate(self._shards):
            try:
                with pq.ParquetFile(shard) as file:
                    for group in range(file.num_row_groups):
                        table = file.read_row_group(group, columns=["path", "file_name", "error"])
                        for row, image in enumerate(table.to_pylist()):
                            path, own = image["path"], image["file_name"]
                            if Path(path).name != Path(own).name:  # it lies in a tar
                                path = f"{path}/{own}"
                            name = _name(path, self._parts)
                            if name not in names:
                                continue
                            if name in self._places or name in errors:
                                raise ValueError(f"{shard}: '{name}' is there twice")
                            if image["error"] is None:
                                self._places[name] = (number, group, row)
                            else:
                                errors[name] = f" ({image['error']})"
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{shard} cannot be read: {error}") from error
        return [
            file + errors.get(name, "") for name, file in names.items() if name not in self._places
        ]

    def in_order(self, records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """The records, none of them missing, in the order of the shards, which is read once so."""
        places = [self._places[_name(record["file_name"], self._parts)] for record in records]
        order = sorted(range(len(places)), key=places.__getitem__)
        return Selection([records], np.array(order))  # which reads each when it is asked for

    def output_of(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What a model would have given for a record, once `missing` has found it.

        Returns:
            ``panoptic_seg``, ``instances`` and ``sem_seg`` (one 1 among 0s a pixel), as far as
            the shards have them.

        Raises:
            ValueError: naming the shard, the image and what is wrong.
        """
        name = _name(record["file_name"], self._parts)
        number, group, row = self._places[name]
        if self._group is None or self._group[0] != (number, group):
            with pq.ParquetFile(self._shards[number]) as file:
                self._group = ((number, group), file.read_row_group(group).to_pylist())
        where = f"{self._shards[number]}, image '{name}'"
        found = decode_row(self._group[1][row])
        output: dict[str, Any] = {}
        try:
            if found.panoptic_png is not None:
                rgb = _pixels(found.panoptic_png, where, found.size).astype(np.int32)
                ids = rgb @ np.array([1, 256, 256**2], np.int32)
                output["panoptic_seg"] = self._decode.panoptic_seg(ids, found.segments or [], where)
            if found.instances is not None:
                output["instances"] = self._decode.instances(
                    found.instances, found.size, str(self._shards[number]), f"image '{name}'"
                )
            if found.label_png is not None:
                labels = _pixels(found.label_png, where, found.size)
                output["sem_seg"] = self._decode.sem_seg(labels, where)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{where}: {type(error).__name__} {error}") from error
        return output


def _name(path: str, parts: int) -> str:
    """The last parts of a path, without the suffix."""
    return "/".join(Path(path).with_suffix("").parts[-parts:])


def _parts_of_names(paths: Sequence[str]) -> int:
    """How many parts of paths tell them apart; ValueError: two are of one picture."""
    most = max((len(Path(path).parts) for path in paths), default=1)
    for parts in range(1, most + 1):
        counts = Counter(_name(path, parts) for path in paths)
        if len(counts) == len(paths):
            return parts
    name, _ = counts.most_common(1)[0]
    raise ValueError(f"the data set has two records of the picture {name}: results name pictures")


def _pixels(png: bytes, where: str, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(png)) as image:
            if (image.height, image.width) != size:  # before it is decoded
                raise ValueError(f"{image.width}x{image.height} pixels for {size[1]}x{size[0]}")
            return np.array(image)
    except BROKEN_FILE as error:
        raise ValueError(f"{where}: its PNG cannot be read: {error}") from error
